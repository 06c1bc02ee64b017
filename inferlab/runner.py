"""Run labs on this machine and keep their records: resumable, one process a lab, within a budget.

A lab that is killed for memory loses the case that it was in and nothing else: the case becomes a
row with status `oom` and the lab starts again after it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inferlab.errors import UserError
from inferlab.journal import RunLock, note_kill
from inferlab.profiles import current_profile
from inferlab.recorder import RUN_VARIABLE, partial_folder, this_device
from inferlab.records import find_records

MAX_RESTARTS = 40  # a lab has fewer cases than that
PARTIAL_EXIT = 75  # the lab ended at the time budget: its journal is kept


@dataclass(frozen=True, slots=True)
class LabResult:
    """How one lab of a run ended."""

    lab: str
    outcome: str  # measured | fresh | partial | failed | not started
    wall_s: float = 0.0
    detail: str = ""


def all_labs(labs_dir: Path) -> list[str]:
    """Slugs of the labs in `labs_dir`, in order; templates start with an underscore."""
    return sorted(p.stem for p in labs_dir.glob("*.ipynb") if not p.stem.startswith("_"))


def resolve_labs(names: Sequence[str], labs_dir: Path) -> list[str]:
    """Full slugs for `names`: a slug, or its two digits; errors name what exists."""
    known = all_labs(labs_dir)
    if not known:
        raise UserError(f"no labs in {labs_dir}: run this inside the book's checkout")
    slugs = []
    for name in names:
        found = [slug for slug in known if slug == name or slug.split("_")[0] == name]
        if not found:
            raise UserError(f"unknown lab {name!r}: choose from {', '.join(known)}")
        slugs += [slug for slug in found if slug not in slugs]
    return slugs


def run_labs(
    labs: Sequence[str],
    labs_dir: Path,
    out: Path,
    *,
    budget_s: float = float("inf"),
    force: bool = False,
    say: Callable[[str], None] = print,
) -> list[LabResult]:
    """Execute `labs` one after the other; records go to `out`/<lab>/<device>/.

    A lab whose record in `out` is fresh is not run again unless `force`. `budget_s` is wall time
    for all of them: a lab that meets it keeps what it measured and can be resumed.
    """
    lock = RunLock(out)
    deadline = time.time() + budget_s
    results = []
    try:
        for index, lab in enumerate(labs, start=1):
            head = f"[{index}/{len(labs)}] {lab}"
            if not force and is_measured(lab, out, labs_dir):
                say(f"{head}: record is fresh, not measured again (--force measures)")
                results.append(LabResult(lab, "fresh"))
            elif time.time() >= deadline:
                say(f"{head}: not started, the time budget is spent")
                results.append(LabResult(lab, "not started"))
            else:
                say(f"{head}: running")
                results.append(_run_one(lab, labs_dir, out, deadline, say))
                last = results[-1]
                say(f"{head}: {last.outcome} in {last.wall_s:.0f} s{_tail(last.detail)}")
    finally:
        lock.release()
    return results


def is_measured(lab: str, out: Path, labs_dir: Path) -> bool:
    """Whether `out` holds a complete and fresh record of `lab` by this machine."""
    device = this_device()
    return any(
        r.manifest.device == device and r.manifest.status == "complete" and not r.is_stale
        for r in find_records(lab, [out], labs_dir).records
    )


def _tail(detail: str) -> str:
    return f" ({detail})" if detail else ""


def _run_one(
    lab: str, labs_dir: Path, out: Path, deadline: float, say: Callable[[str], None]
) -> LabResult:
    began = time.monotonic()
    killed: list[str] = []
    for _ in range(MAX_RESTARTS):
        code, why = _spawn(lab, labs_dir, out, deadline)
        wall_s = time.monotonic() - began
        if code == 0:
            detail = f"out of memory: {', '.join(killed)}" if killed else ""
            return LabResult(lab, "measured", wall_s, detail)
        if code == PARTIAL_EXIT:
            return LabResult(lab, "partial", wall_s, "time budget spent")
        if code not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            if code == 130:
                raise KeyboardInterrupt
            why = why or f"exit code {code}; finished cases are kept"
            return LabResult(lab, "failed", wall_s, why)
        journal_folder = partial_folder(out, lab, this_device())
        case = note_kill(journal_folder, "killed by signal 9, as the out-of-memory killer does")
        if case is None:
            return LabResult(lab, "failed", wall_s, "killed by signal 9 outside any case")
        say(f"    {case}: killed for memory; going on with the next case")
        killed.append(case)
    return LabResult(lab, "failed", time.monotonic() - began, "killed too often")


def _spawn(lab: str, labs_dir: Path, out: Path, deadline: float) -> tuple[int, str]:
    """Exit code of one execution of `lab` in a process of its own, and why it failed, in a line.

    What the lab prints goes to stderr: stdout belongs to the command's own result.
    """
    profile = current_profile().name  # looked up once: the lab may not come to another answer
    reader, writer = os.pipe()
    settings = {
        "out": str(out.resolve()),
        "deadline": deadline if deadline != float("inf") else None,
        "command": f"inferlab run {lab}",
    }
    process = subprocess.Popen(  # noqa: S603 - our own module, no shell
        [sys.executable, "-m", "inferlab.execute", str((labs_dir / f"{lab}.ipynb").resolve()),
         str(writer)],
        env={**os.environ, RUN_VARIABLE: json.dumps(settings), "MPLBACKEND": "Agg",
             "INFERLAB_PROFILE": profile},
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=[writer],
        preexec_fn=_die_with_parent,
    )  # fmt: skip
    os.close(writer)
    try:
        code = process.wait()
        os.set_blocking(reader, False)  # a child of the lab may still hold the other end
        return code, _read_line(reader)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        os.close(reader)


def _read_line(reader: int) -> str:
    try:
        return os.read(reader, 4096).decode(errors="replace").strip()
    except BlockingIOError:
        return ""


def _die_with_parent() -> None:
    """A killed `inferlab run` must not leave a lab measuring behind it (Linux)."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
