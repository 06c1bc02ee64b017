"""Write a record so that a reader sees all of it or nothing, whenever the power fails."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from inferlab.datafile import first_problem
from inferlab.records.samples import check_samples, write_samples
from inferlab.records.schema import (
    MANIFEST_FILE,
    SAMPLES_FILE,
    FileStamp,
    Manifest,
    RecordError,
    private_part,
    trace_file,
)
from inferlab.records.store import load_record
from inferlab.trace import Trace, save_trace


def write_record(
    manifest: Manifest,
    samples: pd.DataFrame,
    root: Path,
    traces: Mapping[str, Trace] | None = None,
) -> Path:
    """Write `root`/<lab>/<device>/ and return it; a record that lies there is replaced.

    Files are written and synced in a hidden folder beside it, the manifest last with the sha256
    of each, read back by the reader that everyone uses, and the folder is renamed into place.
    Raises RecordError for data that a reader would refuse, OSError when the disk does.
    """
    traces = traces or {}
    target = Path(root) / manifest.lab / manifest.device
    checked = check_samples(samples, manifest)
    if unknown := sorted(set(traces) - set(manifest.cases)):
        raise RecordError(f"a trace of case {unknown[0]!r}, which the manifest does not have")
    for text in (manifest.model_dump_json(), *(json.dumps(t.meta) for t in traces.values())):
        _refuse_private(text)
    for trace in traces.values():
        if what := private_part(json.dumps(trace.meta)):
            raise RecordError(f"the meta of a trace holds {what}: leave it out")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):
        recover(target)
        for leftover in target.parent.glob(".new-*"):  # of a writer that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        try:
            folder = scratch / manifest.lab / manifest.device  # names that the reader checks
            folder.mkdir(parents=True)
            write_samples(checked, folder / SAMPLES_FILE)
            names = [SAMPLES_FILE]
            for case, trace in traces.items():
                names.append(trace_file(case))
                (folder / names[-1]).parent.mkdir(exist_ok=True)
                save_trace(trace, folder / names[-1])
            files = {name: _stamp(folder / name) for name in names}
            _write_manifest(manifest.model_copy(update={"files": files}), folder)
            load_record(folder)
            for written in (folder / "traces", folder):
                if written.exists():
                    _sync(written)
            _replace(folder, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def recover(target: Path) -> None:
    """Put back the previous record if a crash came between moving it aside and replacing it."""
    previous = _previous(target)
    if previous.exists():
        if target.exists():
            shutil.rmtree(previous)
        else:
            previous.rename(target)


def _previous(target: Path) -> Path:
    return target.with_name(f".previous-{target.name}")


def _replace(folder: Path, target: Path) -> None:
    previous = _previous(target)
    if target.exists():
        target.rename(previous)
    folder.rename(target)
    _sync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time in `folder`; the lock ends with its process, however it dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    try:
        whole = Manifest.model_validate(manifest.model_dump())
    except ValueError as error:
        raise RecordError(f"{MANIFEST_FILE}: {first_problem(error)}") from None
    path = folder / MANIFEST_FILE
    with path.open("w", encoding="utf-8") as file:
        file.write(whole.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _stamp(path: Path) -> FileStamp:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileStamp(sha256=digest, size_bytes=path.stat().st_size)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_private(text: str) -> None:
    """Refuse this machine's host name and this user's name as words of `text`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = ""
    host = socket.gethostname().partition(".")[0]
    for what, word in (("host name", host), ("user name", user)):
        # Generic names ("root", "localhost") say nothing about anyone and are common words.
        if len(word) < 4 or word.lower() in ("root", "user", "localhost", "ubuntu", "jovyan"):
            continue
        if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text):
            raise RecordError(f"the record holds this machine's {what}: leave it out")
