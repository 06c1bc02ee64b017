"""What does a record of lab 40 say: frontier and knee, servers under load, waits beside theory?

Rows are dictionaries in SI units; `shown` makes a table to read of them.
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from inferlab import roofline, units
from inferlab.batching import cost
from inferlab.batching.simulate import StepTimes, simulate
from inferlab.errors import UserError
from inferlab.metrics import e2e_s, tpot_s, ttft_s
from inferlab.models.config import ModelConfig
from inferlab.models.cost import decode_cost
from inferlab.records import CaseInfo, Record
from inferlab.roofline import Ceilings
from inferlab.serving.batcher import dynamic
from inferlab.serving.waits import waits_s
from inferlab.stats import Estimate, median_interval
from inferlab.workload import poisson_arrivals, uniform_batch

Row = dict[str, Any]
HELD = "held"  # dynamic with a wait limit above zero
ORDER = ("none", "static", "dynamic", HELD)
LIMITS = (0.0, 0.5, 1.0, 2.0, 4.0)  # in services of one request
EMULATED_REQUESTS = 2000


def policy_of(info: CaseInfo) -> str:
    """How figures and tables call the policy of a load case."""
    name, limit = info.params["policy"], info.params["max_wait_s"]
    return HELD if name == "dynamic" and limit else name


def frontier_rows(record: Record) -> list[Row]:
    """Batch size, TPOT and decode throughput of the frontier, measured and predicted."""
    rows = []
    for name in record.cases(phase="frontier"):
        info = record.manifest.cases[name]
        if "tpot_s" not in record.metrics(name):
            continue  # out of memory
        size, found = info.params["batch_size"], record.estimate(name, "tpot_s")
        expected_s = info.predicted["tpot_s"]
        rows.append({
            "batch_size": size, "tpot_s": found.value, "tpot_low_s": found.low,
            "tpot_high_s": found.high, "predicted_tpot_s": expected_s,
            "step_tok_per_s": size / found.value, "predicted_step_tok_per_s": size / expected_s,
            "output_tok_per_s": record.estimate(name, "output_tok_per_s").value,
        })  # fmt: skip
    if not rows:
        raise UserError(f"the record of {record.manifest.lab} has no frontier")
    return sorted(rows, key=lambda row: row["batch_size"])


def knee(record: Record) -> Estimate:
    """The batch size at the knee of each round's steps: median and interval over rounds."""
    sizes = {
        name: record.manifest.cases[name].params["batch_size"]
        for name in record.cases(phase="frontier")
    }
    rows = record.samples
    rows = rows[(rows["status"] == "ok") & (rows["metric"] == "tpot_s") & rows["case"].isin(sizes)]
    rounds = [
        {sizes[case]: value for case, value in zip(part["case"], part["value"], strict=True)}
        for _, part in rows.groupby("round")
    ]
    if not rounds:
        raise UserError(f"the record of {record.manifest.lab} has no frontier")
    return median_interval([cost.measured_knee(steps) for steps in rounds])


def predicted_knee(record: Record) -> float:
    """The knee that was expected before the frontier was measured."""
    (name, *_) = record.cases(phase="frontier")
    return record.manifest.cases[name].predicted["knee_batch_size"]


def is_past_knee(record: Record) -> bool:
    """Whether larger batches than the knee were measured."""
    return cost.reaches_knee({row["batch_size"]: row["tpot_s"] for row in frontier_rows(record)})


def share_rows(
    config: ModelConfig,
    dtype: str,
    context_len: int,
    ceilings: Ceilings,
    batch_sizes: Sequence[int],
) -> list[Row]:
    """What a decode step moves by batch size, and how long its arithmetic takes beside that."""
    rows = []
    for size in batch_sizes:
        step = decode_cost(config, dtype, size, context_len)
        busy = roofline.compute_s(step, ceilings) / roofline.memory_s(step, ceilings)
        rows.append({
            "batch size": size, "of the bytes, weights": f"{step.weight_bytes / step.bytes:.1%}",
            "bytes moved for each token": units.format_bytes(step.bytes / size),
            "arithmetic over reading": f"{busy:.1%}",
        })  # fmt: skip
    return rows


def knee_rows(
    config: ModelConfig, dtype: str, ceilings: Ceilings, context_lens: Sequence[int]
) -> list[Row]:
    """The ridge batch size and the knee by context, from ceilings alone."""
    rows = []
    for context_len in context_lens:
        ridge = roofline.ridge_batch_size(config, dtype, ceilings, context_len)
        knee_size = cost.predicted_knee(config, dtype, context_len, ceilings)
        rows.append({
            "context": context_len, "ridge batch size": f"{ridge:.0f}" if ridge < 1e6 else "none",
            "knee": f"{knee_size:.0f}",
        })  # fmt: skip
    return rows


def step_times(record: Record) -> StepTimes:
    """What an emulation is fed with: the medians of the service cases of a record."""
    prefill_s, step_s = {}, {}
    for name in record.cases(phase="service"):
        params = record.manifest.cases[name].params
        tokens = params["batch_size"] * params["prompt_len"]
        prefill_s[tokens] = record.estimate(name, "prefill_s").value
        step_s[params["batch_size"]] = record.estimate(name, "tpot_s").value
    return StepTimes(prefill_s, step_s)


def load_rows(record: Record, lengths: str = "equal") -> list[Row]:
    """Means of each server under load: batches, wait, TTFT, TPOT, E2E, throughput, cost."""
    rows = []
    for name, info in _load_cases(record, lengths):
        metrics = ("num_batched", "wait_s", "ttft_s", "tpot_s", "e2e_s", "output_tok_per_s",
                   "busy_per_request_s")  # fmt: skip
        found = {metric: record.estimate(name, metric).value for metric in metrics}
        found = {"mean_batch": found.pop("num_batched"), **found}
        rows.append({"load": info.params["load"], "policy": policy_of(info), **found})
    return rows


def request_rows(record: Record) -> list[Row]:
    """What single requests of the trace that was kept saw: the median one and the worst."""
    rows = []
    for name, info in _load_cases(record, "equal"):
        if not record.has_trace(name):
            continue
        trace = record.trace(name)
        seen = {
            "wait": waits_s(trace),
            "ttft": [ttft_s(r) for r in trace.requests],
            "tpot": [value for r in trace.requests if (value := tpot_s(r)) is not None],
        }
        row = {"load": info.params["load"], "policy": policy_of(info),
               "requests": len(trace.requests)}  # fmt: skip
        for quantity, values in seen.items():
            row |= {f"{quantity}_median_s": statistics.median(values),
                    f"{quantity}_longest_s": max(values)}  # fmt: skip
        rows.append(row)
    return rows


def wait_rows(record: Record) -> list[Row]:
    """Mean wait by theory, the range of short runs, emulated on the same arrivals, measured.

    Theory is NaN where it has no mean (overload) or no formula (a wait limit).
    """
    rows = []
    for lengths in ("equal", "mixed"):
        for name, info in _load_cases(record, lengths):
            measured = record.estimate(name, "wait_s")
            emulated = record.estimate(name, "emulated_wait_s")
            rows.append({
                "load": info.params["load"], "policy": policy_of(info), "lengths": lengths,
                "theory_s": info.predicted.get("wait_s", math.nan),
                "low_s": info.predicted["wait_low_s"], "high_s": info.predicted["wait_high_s"],
                "emulated_s": emulated.value, "measured_s": measured.value,
                "e2e_s": record.estimate(name, "e2e_s").value,
                "emulated_e2e_s": record.estimate(name, "emulated_e2e_s").value,
                "theory_e2e_s": info.predicted.get("e2e_s", math.nan),
            })  # fmt: skip
    return rows


def part_rows(record: Record) -> list[Row]:
    """E2E latency in parts: the wait for the batch, its prefill, the steps of the answer."""
    return [
        {
            "load": row["load"], "policy": row["policy"], "wait_s": row["wait_s"],
            "prefill_s": row["ttft_s"] - row["wait_s"], "steps_s": row["e2e_s"] - row["ttft_s"],
            "e2e_s": row["e2e_s"],
        }
        for row in load_rows(record)
    ]  # fmt: skip


def prefill_rows(record: Record) -> list[Row]:
    """Reading the prompts of a batch: padded, packed and alone, measured and predicted.

    `over_packed` pairs rounds; `predicted_over_packed` is the quotient of the predictions.
    """
    rows = []
    for name in record.cases(phase="prefill"):
        info = record.manifest.cases[name]
        (packed,) = record.cases(phase="prefill", mix=info.params["mix"], prefill="packed")
        expected_s = record.manifest.cases[packed].predicted["prefill_s"]
        found = record.ratio(packed, name, "prefill_s")
        rows.append({
            "mix": info.params["mix"], "prefill": info.params["prefill"],
            "waste_ratio": info.params["waste_ratio"] * (info.params["prefill"] == "padded"),
            "flops": float(info.params["flops"]),
            "measured_s": record.estimate(name, "prefill_s").value,
            "predicted_s": info.predicted["prefill_s"], "over_packed": found.value,
            "over_packed_low": found.low, "over_packed_high": found.high,
            "predicted_over_packed": info.predicted["prefill_s"] / expected_s,
        })  # fmt: skip
    return rows


def limit_rows(
    times: StepTimes, prompt_len: int, output_len: int, max_batch_size: int, loads: Sequence[float]
) -> list[Row]:
    """Mean E2E latency by wait limit and load, over that without a limit (emulated).

    The limit is in services of one request. Below 1 the limit wins: larger batches are worth it.
    """
    alone_s = times.service_s(1, prompt_len, output_len)
    workload = uniform_batch(100, EMULATED_REQUESTS, prompt_len, output_len, seed=40)
    rows = []
    for load in loads:
        due = poisson_arrivals(workload, load / alone_s, seed=40)
        latency = {}
        for limit in LIMITS:
            trace = simulate(due, dynamic(max_batch_size, limit * alone_s), times)
            latency[limit] = statistics.fmean(e2e_s(request) for request in trace.requests)
        ratios = {f"limit {limit:g}": latency[limit] / latency[0.0] for limit in LIMITS[1:]}
        rows.append({"load": load, **ratios})
    return rows


def shown(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """`rows` to read: seconds and rates with units, ratios with three digits, n/a for NaN."""
    found = pd.DataFrame(list(rows))
    for column in found.columns:
        if found[column].dtype.kind == "f":
            found[column] = [units.format_metric(column, v) for v in found[column]]
    return found.rename(columns=_title)


def _title(column: str) -> str:
    """`ttft_s` -> "TTFT", `busy_per_request_s` -> "busy per request"."""
    plain = column.removesuffix("_tok_per_s").removesuffix("_s").removesuffix("_ratio")
    words = plain.replace("_", " ").split()
    return " ".join(w.upper() if w in ("ttft", "tpot", "e2e") else w for w in words)


def of_devices(records: Iterable[Record], rows_of: Callable[[Record], list[Row]]) -> pd.DataFrame:
    """The rows of several records to read, each with its device in front."""
    return shown(
        {"device": record.manifest.device, **row} for record in records for row in rows_of(record)
    )


def _load_cases(record: Record, lengths: str) -> list[tuple[str, CaseInfo]]:
    """Load cases that were measured, by load and then in the order of the chapter."""
    found = [
        (name, record.manifest.cases[name])
        for name in record.cases(phase="load", lengths=lengths)
        if record.metrics(name)
    ]
    return sorted(found, key=lambda pair: (pair[1].params["load"], ORDER.index(policy_of(pair[1]))))
