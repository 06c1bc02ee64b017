"""What would show that fusing kernels saves launches and memory traffic? A predicate over lab 26.

A cell is one operation at one size, computed by a fused variant; its baseline is the same operation
as separate operators, of the same block. The baseline states in `predicted` what its launches and
its work (moving and computing) take, `launching_s` and `work_s`: the larger one dominates it.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inferlab.claims.predicates import Verdict, predicate
from inferlab.records import Record
from inferlab.stats import Estimate

FUSED = ("compile", "library", "triton")
SAME = ("operation", "size", "batch_size", "model", "dtype")


@dataclass(frozen=True, slots=True)
class Cell:
    """A fused variant's gain (time of the separate operators over its own) at one size."""

    operation: str
    variant: str
    size: int
    launches_dominate: bool  # in the baseline, by its prediction
    gain: Estimate

    @property
    def name(self) -> str:
        """As it is listed among the evidence."""
        return f"{self.operation}, {self.variant}, size {self.size}"


def fusion_cells(
    record: Record, fused: Sequence[str] = FUSED, baseline: str = "eager", metric: str = "time_s"
) -> Iterator[Cell]:
    """Every cell of `record` that has its baseline in the same block."""
    for fast, info in record.manifest.cases.items():
        params = info.params
        if params.get("variant") not in fused or metric not in record.metrics(fast):
            continue
        if any(params.get(key) is None for key in SAME):
            continue
        for slow in record.cases(variant=baseline, **{key: params[key] for key in SAME}):
            other = record.manifest.cases[slow]
            floors = other.predicted
            known = {"launching_s", "work_s"} <= set(floors)
            if other.block == info.block and known and metric in record.metrics(slow):
                yield Cell(
                    params["operation"], params["variant"], params["size"],
                    floors["launching_s"] >= floors["work_s"], record.ratio(fast, slow, metric),
                )  # fmt: skip


def decided(gain: Estimate) -> int:
    """1 when the whole interval says faster, -1 slower, else 0; without one the value decides."""
    low, high = (gain.low, gain.high) if gain.has_interval else (gain.value, gain.value)
    return int(low > 1) - int(high < 1)


@predicate
def fusing_saves_launches_and_traffic(
    record: Record, *, fused: Sequence[str] = FUSED, baseline: str = "eager"
) -> Verdict:
    """Is fusing faster both where launches dominate the separate operators and where work does?

    Holds when in both regimes some cell is surely faster and none surely slower; fails when none is
    faster. A regime without a cell was not tested.
    """
    counts = {True: [0, 0, 0], False: [0, 0, 0]}  # launches dominate: cells, faster, slower
    evidence, losers = {}, set()
    for cell in fusion_cells(record, fused, baseline):
        sign = decided(cell.gain)
        row = counts[cell.launches_dominate]
        row[0] += 1
        row[1] += sign > 0
        row[2] += sign < 0
        evidence[f"gain, {cell.name}"] = cell.gain
        if sign < 0:
            losers.add((cell.variant, cell.operation))
    if not any(row[0] for row in counts.values()):
        return Verdict("untested", "the record has no fused operation beside separate operators")
    words = {True: "launches dominate", False: "moving and computing dominate"}
    where = "; ".join(
        f"{words[regime]}: faster in {row[1]} of {row[0]} cells, slower in {row[2]}"
        for regime, row in counts.items()
        if row[0]
    )
    if losers:
        named = ", ".join(f"{operation} by {variant}" for variant, operation in sorted(losers))
        where += f"; slower somewhere: {named}"
    if not all(row[0] for row in counts.values()):
        missing = next(words[regime] for regime, row in counts.items() if not row[0])
        return Verdict("untested", f"{where}; no cell where {missing}", evidence)
    if not any(row[1] for row in counts.values()):
        return Verdict("fails", where, evidence)
    everywhere = all(row[1] and not row[2] for row in counts.values())
    return Verdict("holds" if everywhere else "holds only where", where, evidence)
