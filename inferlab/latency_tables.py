"""Which tables stand behind the figures of chapter 01? Text of every cell, ready to be shown.

Chapter: chapters/01_metrics.md    Lab: labs/01_metrics.ipynb
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd

from inferlab.dialects import all_dialects, readings, spread
from inferlab.metrics import summarize
from inferlab.omission import StallScenario
from inferlab.records import Record
from inferlab.stats import percentile_interval
from inferlab.trace import Trace
from inferlab.units import format_number, format_seconds


def readings_table(trace: Trace) -> pd.DataFrame:
    """Every tool's values for one log, a row each."""
    rows = readings(summarize(trace).to_dict(), all_dialects(trace))
    return pd.DataFrame(
        {
            "tool": row.tool,
            "its word": row.per_token_name,
            "a token": _ms(row.per_token_ms),
            "mean gap": _ms(row.gap_ms),
            "TTFT": _ms(row.ttft_ms),
            "p99 of TTFT": _ms(row.p99_ttft_ms),
        }
        for row in rows
    )


def rechunk_table(before: Trace, after: Trace) -> pd.DataFrame:
    """How far each tool's time per token moved between two logs of the same tokens."""
    old, new = spread.per_token_s(before), spread.per_token_s(after)
    return pd.DataFrame(
        {"tool and word": tool, "after / before": f"{new[tool] / old[tool]:.2f}"} for tool in old
    )


def stall_table(stall: StallScenario, lengths_s: Sequence[float]) -> pd.DataFrame:
    """p99 of TTFT by length of the stall: predicted, and as two clients and two clocks see it."""
    rows = []
    for length_s in lengths_s:
        case = dataclasses.replace(stall, stall_s=length_s)
        opened, waited = (summarize(case.run(client)) for client in ("open", "waiting"))
        predicted_s = case.predicted_ttft_s(99)
        rows.append(
            {
                "stall": format_seconds(length_s),
                "predicted p99": format_seconds(predicted_s),
                "open client": format_seconds(opened.ttft_s.p99),
                "predicted / open": format_number(predicted_s / opened.ttft_s.p99, 2),
                "waiting client, from sent": format_seconds(waited.ttft_from_sent_s.p99),
                "waiting client, from due": format_seconds(waited.ttft_s.p99),
            }
        )
    return pd.DataFrame(rows)


def percentile_table(sizes: Sequence[int], q: float = 99.0) -> pd.DataFrame:
    """Which percentiles of a sample enclose the true one, by number of requests."""
    rows = []
    for n in sizes:
        band = percentile_interval(n, q)
        high = "the maximum" if band.high_q == 100 else f"p{band.high_q:.2f}"
        rows.append({"requests": f"{n:,}", "from": f"p{band.low_q:.2f}", "to": high,
                     "probability": f"{band.coverage:.3f}"})  # fmt: skip
    return pd.DataFrame(rows)


def spread_table(records: Sequence[Record]) -> pd.DataFrame:
    """Largest over smallest per-token value by answer length, predicted and measured."""
    return pd.DataFrame(
        {
            "device": f"{record.manifest.machine.title} ({record.origin})",
            "output tokens": row.output_len,
            "measured": format_number(row.median),
            "95 % interval": f"{format_number(row.low)} to {format_number(row.high)}",
            "predicted": "" if math.isnan(row.predicted) else format_number(row.predicted),
            "predicted / measured": ""
            if math.isnan(row.predicted)
            else f"{row.predicted / row.median:.3f}",
        }
        for record in records
        for row in record.table("spread_ratio").itertuples()
    )


def _ms(value_ms: float | None) -> str:
    return "" if value_ms is None else format_seconds(value_ms / 1e3)
