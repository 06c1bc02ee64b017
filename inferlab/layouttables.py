"""What does a record of lab 21 say: attention's share of a step, throughput, bandwidth reached?

Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from inferlab import cachecost
from inferlab.records import Record
from inferlab.stats import Estimate


def swept(record: Record, layout: str, batch_size: int = 1) -> list[str]:
    """Cases of one layout's sweep over contexts, shortest first; those without steps left out."""
    found = record.cases(phase="context", layout=layout, batch_size=batch_size)
    ordered = sorted(found, key=lambda case: record.manifest.cases[case].params["context_len"])
    return [case for case in ordered if "tpot_s" in record.metrics(case)]


def layouts_of(record: Record, phase: str) -> list[str]:
    """Layouts with cases of that phase, in the order they were measured."""
    cases = record.manifest.cases.values()
    return list(dict.fromkeys(c.params["layout"] for c in cases if c.params.get("phase") == phase))


def slope(record: Record, layout: str, batch_size: int = 1) -> Estimate:
    """Seconds that a cached token of one sequence adds to a step: a line a round, its interval."""
    found = _slope(record, swept(record, layout, batch_size))
    parts = (found.value, found.low, found.high)
    return Estimate(*(value / batch_size for value in parts), found.n)


def attention_shares(record: Record, batch_size: int = 1) -> pd.DataFrame:
    """A row a layout and context: the share of the step that grows with the context.

    From the slope of the step time over context: all that is not there at context 0. Predicted from
    the bytes that are read and the keys and values that are made.
    """
    rows = []
    for layout in layouts_of(record, "context"):
        cases = swept(record, layout, batch_size)
        if len(cases) < 2:
            continue
        grown_s = _slope(record, cases).value
        for case in cases:
            info = record.manifest.cases[case]
            step_s = record.estimate(case, "tpot_s").value
            length = info.params["context_len"]
            rows.append(
                {
                    "layout": layout, "family": info.params["family"], "context_len": length,
                    "batch_size": batch_size, "step_s": step_s,
                    "share": float(np.clip(grown_s * length / step_s, 0, 1)),
                    "predicted": info.predicted["attention_share_ratio"],
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def throughputs(record: Record) -> pd.DataFrame:
    """A row a layout: throughput at its largest batch, with what was predicted.

    `gain` is that over the first layout's, paired by round.
    """
    table = record.table("output_tok_per_s").query("phase == 'capacity'")
    table = table[table["status"] == "ok"].copy()
    held = [record.estimate(case, "kv_bytes").value for case in table["case"]]
    table["token_bytes"] = held / (table["batch_size"] * table["context_len"])
    first = table["case"].iloc[0]
    gains = [record.ratio(first, case, "output_tok_per_s") for case in table["case"]]
    table["gain"], table["gain_low"], table["gain_high"] = (
        [getattr(gain, part) for gain in gains] for part in ("value", "low", "high")
    )
    return table


def _slope(record: Record, cases: list[str]) -> Estimate:
    return cachecost.slope(record, cases, param="context_len")
