"""How much of a decode step is the host's, and from which size of model on is it the memory's?

A step starts some hundreds of operators, and each costs the host a little whatever it computes. On
a CPU that time comes on top of the reading of weights and cache; a GPU reads while the host starts
what comes next, so there the longer of the two is left.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.models.cost import StepCost
from inferlab.records import Record
from inferlab.roofline import Ceilings, floor_s
from inferlab.stats import Estimate, median_interval

TURNING_SHARE = 0.5  # of a step: below it a model is called host-bound


def scaled(config: ModelConfig, hidden_size: int) -> ModelConfig:
    """`config` with another width and the same depth: the same operators over fewer bytes.

    Heads keep their size; the MLP and the vocabulary shrink in proportion. Random weights only.
    UserError unless `hidden_size` is a positive multiple of the head size.
    """
    if hidden_size < config.head_dim or hidden_size % config.head_dim:
        raise UserError(
            f"a width of {hidden_size} does not divide into heads of {config.head_dim}: "
            f"choose a multiple of {config.head_dim}"
        )
    num_q_heads = hidden_size // config.head_dim
    shared = config.group_size if num_q_heads % config.group_size == 0 else num_q_heads
    ratio = hidden_size / config.hidden_size
    return dataclasses.replace(
        config,
        name=f"{config.name}-h{hidden_size}",
        hidden_size=hidden_size,
        intermediate_size=_multiple(config.intermediate_size * ratio, 32),
        num_q_heads=num_q_heads,
        num_kv_heads=num_q_heads // shared,
        vocab_size=_multiple(config.vocab_size * ratio, 32),
        source=None,
    )


def shallow(config: ModelConfig, num_layers: int) -> ModelConfig:
    """`config` with its first `num_layers` layers only: what is quick to compile."""
    if not 1 <= num_layers <= config.num_layers:
        raise UserError(
            f"{config.name} has {config.num_layers} layers: choose 1 to {config.num_layers}, "
            f"not {num_layers}"
        )
    return dataclasses.replace(
        config, name=f"{config.name}-l{num_layers}", num_layers=num_layers, source=None
    )


def launch_bound_s(operators: float, operator_s: float) -> float:
    """Seconds that the host needs at least to start `operators` of `operator_s` each."""
    if operators < 0 or operator_s < 0:
        raise UserError("neither a number of operators nor their cost can be negative")
    return operators * operator_s


def predict_step_s(cost: StepCost, ceilings: Ceilings, host_s: float, overlaps: bool) -> float:
    """Expected seconds of a step: floor and host time together, or the larger if they overlap."""
    floor = floor_s(cost, ceilings)
    return max(floor, host_s) if overlaps else floor + host_s


def turning_bytes(
    ceilings: Ceilings, host_s: float, overlaps: bool, share: float = TURNING_SHARE
) -> float:
    """Bytes a step must read for its floor to be `share` of `predict_step_s`."""
    if not 0 < share < 1:
        raise UserError(f"share must lie between 0 and 1, not {share!r}")
    ratio = share if overlaps else share / (1 - share)
    return ratio * host_s * ceilings.read_bytes_per_s


def padded_ratio(context_len: int, bucket_size: int) -> float:
    """Positions that a bucketed step reads over those that it needs: 1 and more."""
    if context_len < 1 or bucket_size < 1:
        raise UserError("context_len and bucket_size must be at least 1")
    return math.ceil(context_len / bucket_size) * bucket_size / context_len


def num_graphs(capacity: int, bucket_size: int, num_batch_sizes: int = 1) -> int:
    """Graphs that cover every step up to `capacity` positions: one a bucket and batch size."""
    if capacity < 1 or bucket_size < 1 or num_batch_sizes < 1:
        raise UserError("capacity, bucket_size and num_batch_sizes must be at least 1")
    return math.ceil(capacity / bucket_size) * num_batch_sizes


def breakeven_tokens(once_s: float, slow_s: float, fast_s: float) -> float:
    """Tokens after which a cost of `once_s` is won back; inf when a step is not faster."""
    return once_s / (slow_s - fast_s) if slow_s > fast_s else math.inf


def breakeven(
    record: Record, slow: str, fast: str, once_s: float, metric: str = "tpot_s"
) -> Estimate:
    """`breakeven_tokens` with the saving of each round; inf at an end where nothing is saved."""
    slow_s, fast_s = _by_round(record, (slow, fast), metric)
    saved = median_interval(slow_s - fast_s)
    value, low, high = (
        once_s / s if s > 0 else (math.nan if math.isnan(s) else math.inf)
        for s in (saved.value, saved.high, saved.low)
    )
    return Estimate(value, low, high, saved.n)


def measured_floor_s(record: Record, case: str) -> float:
    """Median of the floor that was measured beside the case; the predicted one where none was."""
    if "floor_s" in record.metrics(case):
        return record.estimate(case, "floor_s").value
    return record.manifest.cases[case].predicted["floor_s"]


def floor_share(
    record: Record, case: str, metric: str = "tpot_s", floor: str = "floor_s"
) -> Estimate:
    """The case's floor over its measured time, by round: 1 is a perfect step.

    The floor that was measured beside each step; the predicted one where none was.
    """
    return median_interval(_shares(record, case, metric, floor))


def measured_turning_bytes(
    record: Record, cases: Sequence[str], metric: str = "step_s", share: float = TURNING_SHARE
) -> Estimate:
    """Bytes read a step at which the floor is `share` of the measured time, by round.

    Cases state `read_bytes` as a parameter, and `floor_s` was measured or is predicted.
    Interpolated on a logarithmic axis between the two sizes around the crossing; at the largest
    size when no size reaches the share, at the smallest when all do.
    """
    if len(cases) < 2:
        raise UserError("a turning point needs at least two sizes")
    order = sorted(cases, key=lambda case: record.manifest.cases[case].params["read_bytes"])
    sizes = np.array([record.manifest.cases[case].params["read_bytes"] for case in order])
    found = [_shares(record, case, metric, "floor_s") for case in order]
    rounds = min(map(len, found))
    shares = np.array([values[:rounds] for values in found])  # [cases, rounds]
    return median_interval([_crossing(sizes, column, share) for column in shares.T])


def reaches(record: Record, cases: Sequence[str], metric: str = "step_s") -> bool:
    """Whether the sweep holds both a host-bound and a memory-bound model, by their medians."""
    shares = [floor_share(record, case, metric).value for case in cases]
    return min(shares) < TURNING_SHARE <= max(shares)


def _crossing(sizes: np.ndarray, shares: np.ndarray, share: float) -> float:
    rising = np.maximum.accumulate(shares)
    if rising[0] >= share:
        return float(sizes[0])
    if rising[-1] < share:
        return float(sizes[-1])
    after = int(np.argmax(rising >= share))
    part = (share - rising[after - 1]) / (rising[after] - rising[after - 1])
    low, high = np.log(sizes[after - 1 : after + 1])
    return float(np.exp(low + part * (high - low)))


def _shares(record: Record, case: str, metric: str, floor: str) -> np.ndarray:
    """[rounds] floor over measured time; the floor as measured beside it, else as predicted."""
    times = record.values(case, metric)
    if floor in record.metrics(case):
        return record.values(case, floor)[: len(times)] / times
    predicted = record.manifest.cases[case].predicted
    if floor not in predicted:
        raise UserError(f"case {case} states no {floor}: name a case of the ladder or the sweep")
    return predicted[floor] / times


def _by_round(record: Record, cases: Sequence[str], metric: str) -> np.ndarray:
    """[cases, rounds] of cases that took turns in one block."""
    values = [record.values(case, metric) for case in cases]
    rounds = min(len(found) for found in values)
    return np.array([found[:rounds] for found in values])


def _multiple(value: float, of: int) -> int:
    return max(of, round(value / of) * of)
