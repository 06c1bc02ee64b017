"""What does a record of lab 26 say: gains, crossovers, shares, and what each gain is made of?

Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from inferlab.kernelcost import SIZES
from inferlab.kernelspeed import crossover_size
from inferlab.records import Record
from inferlab.units import format_number

COLUMNS = ["variant", "size", "median", "low", "high", "n", "predicted"]
TITLES = {
    "add_rms_norm": "residual + RMSNorm", "rope_store": "RoPE + store", "swiglu": "SwiGLU",
    "prefill_attention": "attention, prefill", "decode_attention": "attention, decode",
    "linear": "product of few rows",
}  # fmt: skip


def size_name(operation: str) -> str:
    """What the size of an operation counts: rows, prompt length or context."""
    return SIZES.get(operation, "rows")


def block_of(operation: str) -> str:
    """Block of the lab that sweeps an operation's sizes."""
    return {"prefill_attention": "prefill", "decode_attention": "decode"}.get(operation, "rows")


def cases_of(record: Record, operation: str, variant: str, block: str | None = None) -> list[str]:
    """Cases of one variant by size; `block` limits them to one block of the lab."""
    cases = record.manifest.cases
    found = [
        c
        for c in record.cases(operation=operation, variant=variant)
        if record.metrics(c) and block in (None, cases[c].block)
    ]
    return sorted(found, key=lambda c: cases[c].params["size"])


def gains(
    record: Record, operation: str, block: str, metric: str = "time_s", baseline: str = "eager"
) -> pd.DataFrame:
    """Time of `baseline` over that of every other variant, by size, with its prediction.

    Both cases belong to `block`; a size at which one of them was lost is left out.
    """
    cases = record.manifest.cases
    slow = {cases[c].params["size"]: c for c in cases_of(record, operation, baseline, block)}
    variants = dict.fromkeys(
        info.params["variant"]
        for info in cases.values()
        if info.params.get("operation") == operation and info.block == block
    )
    rows = []
    for variant in variants:
        for fast in cases_of(record, operation, variant, block) if variant != baseline else []:
            size = cases[fast].params["size"]
            if size not in slow or metric not in record.metrics(fast):
                continue
            found = record.ratio(fast, slow[size], metric)
            expected = [cases[c].predicted.get(metric, math.nan) for c in (slow[size], fast)]
            row = (variant, size, found.value, found.low, found.high, found.n)
            rows.append((*row, expected[0] / expected[1]))
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Size from which a variant stays faster: measured, at both ends of the gains' intervals, and
    predicted at the sizes that were measured. 0: at every size; inf: not even at the largest."""

    value: float
    low: float
    high: float
    predicted: float

    def words(self, unit: str = "rows") -> str:
        """The crossover for a sentence, with its interval."""
        if self.value in (0, math.inf):
            return crossing_words(self.value, unit)
        ends = [_end(self.low, "below all"), _end(self.high, "above all")]
        return f"{crossing_words(self.value, unit)} [{ends[0]}, {ends[1]}]"


def crossing_words(size: float, unit: str = "rows") -> str:
    """A crossover for a sentence."""
    if size == 0:
        return "at every size measured"
    return "at no size measured" if size == math.inf else f"from {format_number(size, 2)} {unit} on"


def crossing(table: pd.DataFrame, variant: str) -> Crossing | None:
    """Where `variant` of a table of `gains` begins to stay faster; None if it is not in there."""
    rows = table[table["variant"] == variant]
    if rows.empty:
        return None

    def at(column: str) -> float:
        known = rows.assign(value=rows[column].fillna(rows["median"]))
        return crossover_size(dict(zip(known["size"], known["value"], strict=True)))

    return Crossing(at("median"), at("high"), at("low"), at("predicted"))


def shares(record: Record, operation: str, variants: tuple[str, ...]) -> pd.DataFrame:
    """Share of the measured bandwidth by size, with the bytes that must move."""
    rows = []
    for variant in variants:
        for case in cases_of(record, operation, variant, block_of(operation)):
            if "bandwidth_share_ratio" not in record.metrics(case):
                continue
            info, share = (
                record.manifest.cases[case], record.estimate(case, "bandwidth_share_ratio"),
            )  # fmt: skip
            size, least = info.params["size"], info.predicted["least_bytes"]
            row = (variant, size, least, share.value, share.low, share.high)
            rows.append((*row, bool(info.params["flushed"])))
    names = ["variant", "size", "least_bytes", "median", "low", "high", "flushed"]
    return pd.DataFrame(rows, columns=names)


def savings(record: Record, operation: str, variant: str, block: str = "rows") -> pd.DataFrame:
    """Seconds that `variant` is predicted to save by size, in launches and in work (moving and
    computing); negative where it costs more than the separate operators."""
    cases = record.manifest.cases
    rows = []
    for slow in cases_of(record, operation, "eager", block):
        size = cases[slow].params["size"]
        for fast in cases_of(record, operation, variant, block):
            if cases[fast].params["size"] == size:
                saved = (
                    cases[slow].predicted[key] - cases[fast].predicted[key]
                    for key in ("launching_s", "work_s")
                )
                rows.append((operation, size, *saved))
    return pd.DataFrame(rows, columns=["operation", "size", "launch_s", "work_s"])


def _end(size: float, beyond: str) -> str:
    return beyond if size in (0, math.inf) else format_number(size, 2)
