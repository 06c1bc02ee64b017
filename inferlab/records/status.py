"""Is there a record, may it be quoted, and what should be run again?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from inferlab.records.store import find_records

STATES = ("bad", "stale", "fresh")  # worst first
MISSING = "missing"


class RecordState(NamedTuple):
    """The state of one lab on one device."""

    lab: str
    device: str  # empty when there is no record at all
    state: str  # fresh | stale | missing | bad
    reasons: tuple[str, ...] = ()
    folder: Path | None = None
    origin: str = ""


def record_states(
    lab: str, roots: Sequence[Path] | None = None, labs_dir: Path | None = None
) -> list[RecordState]:
    """State and reasons of `lab` on every device below `roots`; one `missing` row if on none.

    A `partial` or `invalid` record of the current code is fresh, and its reasons say what it is.
    """
    found = find_records(lab, roots, labs_dir)
    states = []
    for record in found.records:
        manifest, stale = record.manifest, record.stale_reason
        reasons = [stale] if stale else []
        if manifest.status != "complete":
            reasons += [f"{manifest.status}: {reason}" for reason in manifest.reasons]
        states.append(
            RecordState(
                lab, manifest.device, "stale" if stale else "fresh", tuple(reasons),
                record.folder, record.origin,
            )
        )  # fmt: skip
    for problem in found.problems:
        states.append(RecordState(lab, problem.device, "bad", (problem.reason,), problem.folder))
    return states or [RecordState(lab, "", MISSING, ("not measured yet",))]


def record_status(
    lab: str,
    roots: Sequence[Path] | None = None,
    labs_dir: Path | None = None,
    device: str | None = None,
) -> str:
    """`fresh`, `stale`, `missing` or `bad`: of `device`, or the worst of all devices."""
    states = [s.state for s in record_states(lab, roots, labs_dir) if device in (None, s.device)]
    return next((state for state in STATES if state in states), MISSING)
