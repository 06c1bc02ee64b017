"""How does this machine compare with the published ones? Rows for `inferlab report`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inferlab.records import Record, find_records

HEADLINES = ("ttft_s", "tpot_s", "output_tok_per_s", "mbu_ratio")


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One metric of one case on one device."""

    lab: str
    device: str
    origin: str  # published | local
    label: str  # measured | emulated
    stale: bool
    case: str
    metric: str
    status: str
    predicted: float | None
    median: float | None
    low: float | None
    high: float | None
    n: int


def report_rows(
    labs: Sequence[str],
    roots: Sequence[Path] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[ReportRow]:
    """Headline metrics of every record of `labs`; summaries are computed from the samples.

    `say` gets one line for each record that is bad and therefore left out.
    """
    rows = []
    for lab in labs:
        found = find_records(lab, roots)
        for problem in found.problems:
            say(f"note: left out: {problem.reason}")
        rows += [row for record in found.records for row in _rows(record)]
    return rows


def _rows(record: Record) -> list[ReportRow]:
    manifest = record.manifest
    return [
        ReportRow(
            lab=manifest.lab,
            device=manifest.device,
            origin=record.origin,
            label=manifest.label,
            stale=record.is_stale,
            case=row["case"],
            metric=metric,
            status=row["status"],
            predicted=_finite(row["predicted"]),
            median=_finite(row["median"]),
            low=_finite(row["low"]),
            high=_finite(row["high"]),
            n=int(row["n"]),
        )
        for metric in HEADLINES
        for row in record.table(metric).to_dict("records")
    ]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
