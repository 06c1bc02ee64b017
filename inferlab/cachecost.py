"""What should keeping keys and values cost by context, and what did it cost in a record?

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from inferlab.models.config import ModelConfig, get_config
from inferlab.models.cost import (
    StepCost,
    decode_cost,
    kv_bytes_per_token,
    prefill_cost,
    weight_bytes,
)
from inferlab.records import Record
from inferlab.stats import Estimate, fit_power_law, median_interval

HF = "hf"  # transformers' generate, with its own dynamic cache
GROWING = ("dynamic", HF)  # kinds that copy the whole cache at each step


def step_cost(
    config: ModelConfig, dtype: str, kind: str, batch_size: int, context_len: int
) -> StepCost:
    """Bytes and FLOPs of the step that adds the last of `context_len` tokens to B sequences.

    Without a cache the step is a prefill of everything. A growing cache is copied to a larger
    place: every byte of it is read and written once more than attention reads it.
    """
    if kind == "none":
        return prefill_cost(config, dtype, batch_size, context_len)
    cost = decode_cost(config, dtype, batch_size, context_len)
    if kind in GROWING:
        cost = replace(
            cost,
            kv_read_bytes=2 * cost.kv_read_bytes,
            kv_write_bytes=cost.kv_write_bytes + cost.kv_read_bytes,
        )
    return cost


def total_flops(config: ModelConfig, kind: str, lengths: Sequence[int]) -> list[float]:
    """FLOPs of writing n tokens one after the other from an empty text, for each n of `lengths`."""
    steps = [step_cost(config, "bfloat16", kind, 1, s).flops for s in range(1, max(lengths) + 1)]
    sums = np.cumsum(steps)
    return [float(sums[n - 1]) for n in lengths]


def crossover_tokens(model: str, dtype: str) -> float:
    """Cached tokens, over the whole batch, at which the cache takes as much as the weights."""
    config = get_config(model)
    return weight_bytes(config, dtype) / kv_bytes_per_token(config, dtype)


def by_round(record: Record, cases: Sequence[str], metric: str) -> np.ndarray:
    """[cases, rounds] values of cases of one block: a column was measured within one round."""
    values = [record.values(case, metric) for case in cases]
    rounds = min(len(found) for found in values)
    return np.array([found[:rounds] for found in values])


def lengths_of(record: Record, cases: Sequence[str], param: str = "prompt_len") -> np.ndarray:
    """The swept parameter of each case."""
    return np.array([record.manifest.cases[case].params[param] for case in cases], dtype=float)


def exponent(record: Record, cases: Sequence[str], metric: str = "tpot_s") -> Estimate:
    """Exponent of a power law of the context, fitted in each round; median and 95 % interval."""
    lengths = lengths_of(record, cases)
    columns = by_round(record, cases, metric).T
    return median_interval([fit_power_law(lengths, column).exponent for column in columns])


def predicted_exponent(record: Record, cases: Sequence[str], metric: str = "tpot_s") -> float:
    """Exponent over the same contexts of what the cases were predicted to take."""
    expected = [record.manifest.cases[case].predicted[metric] for case in cases]
    return fit_power_law(lengths_of(record, cases), expected).exponent


def slope(
    record: Record, cases: Sequence[str], metric: str = "tpot_s", param: str = "prompt_len"
) -> Estimate:
    """Growth of the metric with each token of context: a line a round; median and interval."""
    return median_interval(_lines(record, cases, metric, param)[0])


def crossover(
    record: Record, flat: Sequence[str], steep: Sequence[str], metric: str = "tpot_s"
) -> Estimate:
    """Context at which two lines meet, fitted in each round to interleaved cases.

    Below it `steep` is the cheaper of the two. Negative when the lines meet before the first
    token: then there is no such context.
    """
    (slope_flat, start_flat), (slope_steep, start_steep) = (
        _lines(record, cases, metric) for cases in (flat, steep)
    )
    rounds = min(slope_flat.size, slope_steep.size)
    rise = slope_steep[:rounds] - slope_flat[:rounds]
    return median_interval((start_flat[:rounds] - start_steep[:rounds]) / rise)


def _lines(
    record: Record, cases: Sequence[str], metric: str, param: str = "prompt_len"
) -> np.ndarray:
    """[2, rounds]: slope and intercept of each round."""
    return np.polyfit(lengths_of(record, cases, param), by_round(record, cases, metric), 1)
