"""Which tables stand behind chapter 46: expected beside measured, and how far a percentile is off?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from inferlab import cited
from inferlab.errors import UserError
from inferlab.records import Record
from inferlab.units import MISSING, format_metric, format_rate, format_seconds

CLIENT_ERRORS = (
    "events_per_s", "ttft_error_median_s", "ttft_error_max_s", "itl_error_median_s",
    "itl_error_p99_s", "client_cpu_ratio",
)  # fmt: skip
EXPECTED = "*"  # ends the name of a column that holds what was expected
MOST_DRAWS = 2000


def beside(
    record: Record, phase: str, params: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """Cases of `phase`: their parameters, then each metric's median and, starred, the expectation.

    A metric that a case lacks is NaN; a starred column is there when any case expected something.
    """
    rows = []
    for case in record.cases(phase=phase):
        info = record.manifest.cases[case]
        row = {name: info.params.get(name) for name in params}
        for metric in metrics:
            known = metric in record.metrics(case)
            row[metric] = record.estimate(case, metric).value if known else math.nan
            row[metric + EXPECTED] = info.predicted.get(metric, math.nan)
        rows.append(row)
    columns = [*params, *(name for metric in metrics for name in (metric, metric + EXPECTED))]
    table = pd.DataFrame(rows, columns=columns)
    empty = [c for c in columns if c.endswith(EXPECTED) and table[c].isna().all()]
    return table.drop(columns=empty)


def shown(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """The columns of `table` in `names`, under those names, with units; starred ones follow."""
    found = {}
    for column, name in names.items():
        for key, title in ((column, name), (column + EXPECTED, f"{name}, expected")):
            if key in table:
                found[title] = [_text(column, value) for value in table[key]]
    return pd.DataFrame(found)


def _text(column: str, value: object) -> str:
    if isinstance(value, str | bool):
        return str(value)
    if value is None or not math.isfinite(value):
        return ""
    return format_metric(column, value)


def subsamples(
    values: Sequence[float], q: float, sizes: Sequence[int], seed: int, draws: int = MOST_DRAWS
) -> pd.DataFrame:
    """How the q-th percentile of n of `values` scatters: drawn, and by the binomial distribution.

    `low` and `high` enclose 95 of 100 percentiles of samples of `n` drawn with replacement.
    `low*` and `high*` are those of the whole: the k-th smallest of n, k = ceil(n q / 100), lies at
    a rank that is Beta(k, n - k + 1) distributed, whatever the values are.
    """
    from scipy.stats import beta

    whole = np.sort(np.asarray(values, dtype=float))
    if whole.size < 2 or not np.isfinite(whole).all():
        raise UserError("subsamples need at least two finite values")
    if not 0 < q < 100:
        raise UserError(f"a percentile rank must lie between 0 and 100, not {q!r}")
    rng, rows = np.random.default_rng(seed), []
    for n in sizes:
        rank = max(1, math.ceil(n * q / 100))
        drawn = np.sort(rng.choice(whole, size=(draws, n)), axis=1)[:, rank - 1]
        low, high = np.quantile(drawn, (0.025, 0.975))
        ends = np.quantile(whole, beta.ppf((0.025, 0.975), rank, n - rank + 1))
        rows.append({"n": n, "low": low, "high": high, "low*": ends[0], "high*": ends[1],
                     "value": float(np.percentile(whole, q))})  # fmt: skip
    return pd.DataFrame(rows, columns=["n", "low", "high", "low*", "high*", "value"])


def published(records: Sequence[Record]) -> pd.DataFrame:
    """Whole servers beside NVIDIA's published figures: ours in bf16, theirs in FP8."""
    rows = []
    for record in records:
        for case in record.cases(phase="published"):
            params = record.manifest.cases[case].params
            rate = record.estimate(case, "output_tok_per_s").value
            lengths = f"{params['prompt_len']}-{params['output_len']}"
            theirs = cited.get(f"trtllm-llama3.1-8b-fp8-h200-{lengths}")
            rows.append({
                "device": record.manifest.machine.title,
                "model": f"{params['model']}, {params['dtype']}",
                "prompt / answer": lengths.replace("-", " / "),
                "sequences": params["num_seqs"],
                "output": format_rate(rate, "tok/s"),
                "of the roofline": f"{rate / params['roofline_tok_per_s']:.0%}",
                "published, FP8 on H200": theirs.text,
                "share of it": f"{rate / theirs.value:.0%}",
            })  # fmt: skip
    return pd.DataFrame(rows)


def measured_knee(record: Record) -> float:
    """The swept rate, requests a second, at which throughput over latency came out largest."""

    def power(case: str) -> float:
        rate = record.estimate(case, "answered_req_per_s").value
        return rate / record.estimate(case, "e2e_mean_s").value

    cases = record.cases(phase="sweep")
    if not cases:
        raise UserError("the record has no sweep of rates to find a knee in")
    return record.manifest.cases[max(cases, key=power)].params["rate_req_per_s"]


def limits(records: Sequence[Record]) -> pd.DataFrame:
    """Each device: its capacity, its limits, and the largest rate within them, as found."""
    rows = []
    for record in records:
        for case in record.cases(phase="search"):
            info = record.manifest.cases[case]
            sweep = record.manifest.cases[record.cases(phase="sweep")[0]].params
            low, high = (
                format_rate(record.estimate(case, metric).value, "req/s")
                if metric in record.metrics(case) else MISSING
                for metric in ("max_rate_req_per_s", "above_rate_req_per_s")
            )  # fmt: skip
            rows.append({
                "device": record.manifest.machine.title,
                "capacity, predicted": format_rate(info.params["capacity_req_per_s"], "req/s"),
                "knee, predicted": format_rate(info.params["knee_req_per_s"], "req/s"),
                "knee, of the rates tried": format_rate(measured_knee(record), "req/s"),
                "TTFT at most": format_seconds(sweep["slo_ttft_s"], 2),
                "TPOT at most": format_seconds(sweep["slo_tpot_s"], 2),
                "by hand": format_rate(info.params["by_hand_req_per_s"], "req/s"),
                "emulated": format_rate(info.predicted["max_rate_req_per_s"], "req/s"),
                "found": low,
                "failed at": high,
            })  # fmt: skip
    return pd.DataFrame(rows)
