"""What has this run measured already? A file that survives a kill at any moment.

One JSON object a line, flushed to the disk before the next sample starts. A last line that was cut
off is dropped on reading. The first line is a fingerprint: samples of another version of the lab,
another configuration or another machine are never mixed in; such a journal is set aside.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from inferlab.errors import MeasurementError, UserError
from inferlab.timing import Sample

JOURNAL_NAME = "journal.jsonl"
MAX_JOURNAL_BYTES = 64 * 2**20


def disk_error(error: OSError, what: str, path: Path, option: str = "--out") -> UserError:
    """`error` as one line that says what to do; `option` names another folder."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MeasurementError(
            f"disk full while writing {what} to {path}: what was measured before is kept; "
            "free some space and run the same command again"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(
            f"cannot write {what} to {path}: it is read-only; name a folder you can write "
            f"to with {option} DIR"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"cannot write {what} to {path}: a file lies in its way; name another folder with "
            f"{option} DIR"
        )
    return UserError(f"cannot write {what} to {path}: {error.strerror or error}")


def writable_folder(folder: Path, what: str, option: str = "--out") -> Path:
    """`folder`, made if needed; UserError in one line when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise disk_error(error, what, folder, option) from error
    return folder


class Journal:
    """Append-only samples of one lab on one device, in `folder`/journal.jsonl."""

    def __init__(self, folder: Path, fingerprint: str):
        self.path = folder / JOURNAL_NAME
        self.set_aside: Path | None = None
        self.samples: list[Sample] = []
        self.killed: dict[str, str] = {}  # case -> why
        self.started: float = time.time()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._resume(fingerprint)
            self._file = self.path.open("ab")
            if self.path.stat().st_size == 0:
                self.append({"fingerprint": fingerprint, "started": self.started})
        except OSError as error:
            raise disk_error(error, "the journal of this run", self.path) from error

    def _resume(self, fingerprint: str) -> None:
        if not self.path.exists():
            return
        events, good_bytes = read_events(self.path)
        try:
            good = bool(events) and events[0].get("fingerprint") == fingerprint
            started = float(events[0]["started"]) if good else self.started
            samples = [Sample(**event["sample"]) for event in events[1:] if "sample" in event]
            killed = {event["killed"]: event["why"] for event in events[1:] if "killed" in event}
        except (KeyError, TypeError, ValueError):  # whole lines, but not ones that we wrote
            good = False
        if not good:
            self.set_aside = self.path.with_name(f"journal-{time.time_ns()}.stale")
            self.path.rename(self.set_aside)
            return
        os.truncate(self.path, good_bytes)
        self.started, self.samples, self.killed = started, samples, killed

    def append(self, event: dict[str, Any]) -> None:
        """Write `event` and wait until the disk has it."""
        try:
            self._file.write(json.dumps(event, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error, "the journal of this run", self.path) from error

    def begin(self, case: str, round_index: int) -> None:
        """Say that `case` starts: if nothing follows, it is what killed the process."""
        self.append({"begin": case, "round": round_index})

    def add(self, sample: Sample) -> None:
        """Keep one finished sample."""
        self.append(
            {
                "sample": {
                    "case": sample.case,
                    "round": sample.round,
                    "status": sample.status,
                    "values": dict(sample.values),
                    "detail": sample.detail,
                }
            }
        )
        self.samples.append(sample)

    def finished_rounds(self) -> dict[str, list[dict[str, float]]]:
        """case -> values of its timed rounds 0, 1, ... in order."""
        rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
        for sample in self.samples:
            if sample.status == "ok" and sample.round == len(rounds[sample.case]):
                rounds[sample.case].append(dict(sample.values))
        return dict(rounds)

    def dropped(self) -> set[str]:
        """Cases that ran out of memory, reported by the case or by the death of its process."""
        return {s.case for s in self.samples if s.status == "oom"} | set(self.killed)

    def close(self) -> None:
        """Close the file; the samples stay."""
        self._file.close()


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Whole events of a journal, and how many bytes they take: a cut-off last line is left out."""
    if path.stat().st_size > MAX_JOURNAL_BYTES:
        raise UserError(
            f"{path} is larger than {MAX_JOURNAL_BYTES} bytes: remove it to start again"
        )
    events: list[dict[str, Any]] = []
    good_bytes = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            event = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(event, dict):
            break
        events.append(event)
        good_bytes += len(line)
    return events, good_bytes


def note_kill(folder: Path, why: str) -> str | None:
    """After a process died: name the case that had begun and not ended, and note it as killed.

    Returns the case, or None when the process died between cases.
    """
    path = folder / JOURNAL_NAME
    if not path.exists():
        return None
    events, good_bytes = read_events(path)
    if not events or "begin" not in events[-1]:
        return None
    case = events[-1]["begin"]
    with path.open("r+b") as file:
        file.truncate(good_bytes)
        file.seek(good_bytes)
        file.write(json.dumps({"killed": case, "why": why}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return case


class RunLock:
    """One run at a time in a records folder; the lock ends with its process, however it dies."""

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise disk_error(error, "records", folder) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(
                f"another run is writing to {folder}: wait for it, or name another folder "
                "with --out DIR"
            ) from error

    def release(self) -> None:
        """Let the next run in."""
        self._file.close()
