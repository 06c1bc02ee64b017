"""How long must a step take, at least, and how long will it take on this machine?

floor = max(bytes / bandwidth, FLOPs / peak): perfect overlap, no launch cost. The prediction adds
an overhead that is stated and fitted on other cases than those it is judged on.
Source of the bound: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.models.cost import StepCost, decode_cost, prefill_cost
from inferlab.quant.formats import WeightFormat


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a machine can do at most, and what a step costs on top."""

    read_bytes_per_s: float
    flops_per_s: float  # matrix products in the dtype that the model runs in
    overhead_s: float = 0.0  # per step: launches, Python, synchronization
    token_overhead_s: float = 0.0  # per token of the step: norms, activations, sampling
    source: str = "measured"  # measured | datasheet

    def __post_init__(self) -> None:
        if self.read_bytes_per_s <= 0 or self.flops_per_s <= 0:
            raise UserError("bandwidth and FLOP/s must be positive")
        if self.overhead_s < 0 or self.token_overhead_s < 0:
            raise UserError("an overhead cannot be negative")

    @property
    def ridge_flops_per_byte(self) -> float:
        """Arithmetic intensity at which the two bounds meet."""
        return self.flops_per_s / self.read_bytes_per_s


def memory_s(cost: StepCost, ceilings: Ceilings) -> float:
    """Seconds to move the bytes of `cost`."""
    return cost.bytes / ceilings.read_bytes_per_s


def compute_s(cost: StepCost, ceilings: Ceilings) -> float:
    """Seconds to do the FLOPs of `cost`."""
    return cost.flops / ceilings.flops_per_s


def floor_s(cost: StepCost, ceilings: Ceilings) -> float:
    """Seconds that no implementation can beat: the larger of the two bounds."""
    return max(memory_s(cost, ceilings), compute_s(cost, ceilings))


def bound(cost: StepCost, ceilings: Ceilings) -> str:
    """Which ceiling limits `cost`: `memory` or `compute`."""
    return "memory" if memory_s(cost, ceilings) >= compute_s(cost, ceilings) else "compute"


def predict_s(cost: StepCost, ceilings: Ceilings, num_tokens: int = 1) -> float:
    """Expected seconds of a step over `num_tokens` new tokens: floor plus the stated overheads."""
    overhead_s = ceilings.overhead_s + num_tokens * ceilings.token_overhead_s
    return floor_s(cost, ceilings) + overhead_s


def predict_tpot_s(
    config: ModelConfig,
    dtype: str,
    batch_size: int,
    context_len: int,
    ceilings: Ceilings,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> float:
    """Expected seconds of one decode step of `batch_size` rows at `context_len` tokens."""
    cost = decode_cost(config, dtype, batch_size, context_len, weight_format, keep)
    return predict_s(cost, ceilings, batch_size)


def predict_ttft_s(
    config: ModelConfig,
    dtype: str,
    batch_size: int,
    prompt_len: int,
    ceilings: Ceilings,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> float:
    """Expected seconds from prompt to first token, nothing queued."""
    cost = prefill_cost(config, dtype, batch_size, prompt_len, weight_format, keep)
    return predict_s(cost, ceilings, batch_size * prompt_len)


def ridge_batch_size(
    config: ModelConfig,
    dtype: str,
    ceilings: Ceilings,
    context_len: int = 1,
    weight_format: WeightFormat | None = None,
) -> float:
    """Batch size at which a decode step turns from bandwidth- to compute-bound; inf if never.

    Both times are straight lines in the batch size B: memory = (W + B·kv) / bandwidth and
    compute = B·f / peak. They cross at W / (f·bandwidth/peak − kv).
    """
    one = decode_cost(config, dtype, 1, context_len, weight_format)
    two = decode_cost(config, dtype, 2, context_len, weight_format)
    per_row_bytes = two.bytes - one.bytes
    shared_bytes = one.bytes - per_row_bytes
    per_row_flops = two.flops - one.flops
    slope = per_row_flops / ceilings.ridge_flops_per_byte - per_row_bytes
    return shared_bytes / slope if slope > 0 else float("inf")


def crossover_batch_size(
    config: ModelConfig,
    dtype: str,
    weight_format: WeightFormat,
    ceilings_baseline: Ceilings,
    ceilings_variant: Ceilings,
    context_len: int = 1,
    keep: Sequence[str] = (),
) -> float:
    """Batch size from which quantized weights no longer speed up a decode step.

    The baseline reads its weights in `dtype`; the variant reads fewer bytes, but its kernel has
    ceilings of its own: a low-bit kernel streams and multiplies at other rates. Both steps are
    `predict_s`. 1.0 when the variant is not faster even at one row, inf when it always is.
    """
    baseline = _decode_lines(config, dtype, None, ceilings_baseline, context_len, ())
    variant = _decode_lines(config, dtype, weight_format, ceilings_variant, context_len, keep)
    # Both times are the upper edge of two straight lines: they can only meet where lines cross.
    meetings = [1.0]
    for at_zero, slope in variant:
        for other_at_zero, other_slope in baseline:
            if slope != other_slope:
                meetings.append((other_at_zero - at_zero) / (slope - other_slope))
    tolerance = 1e-9
    for batch_size in sorted(b for b in meetings if b >= 1):
        variant_s = max(at_zero + slope * batch_size for at_zero, slope in variant)
        baseline_s = max(at_zero + slope * batch_size for at_zero, slope in baseline)
        if variant_s >= baseline_s * (1 - tolerance):
            return batch_size
    return float("inf")


def _decode_lines(
    config: ModelConfig,
    dtype: str,
    weight_format: WeightFormat | None,
    ceilings: Ceilings,
    context_len: int,
    keep: Sequence[str],
) -> list[tuple[float, float]]:
    """Predicted seconds of a decode step as (at B = 0, per row): reading and computing."""
    lines = []
    for seconds in (memory_s, compute_s):
        one, two = (
            seconds(decode_cost(config, dtype, b, context_len, weight_format, keep), ceilings)
            for b in (1, 2)
        )
        slope = two - one
        lines.append((one - slope + ceilings.overhead_s, slope + ceilings.token_overhead_s))
    return lines


def mbu_ratio(cost: StepCost, seconds: float, ceilings: Ceilings) -> float:
    """Model bandwidth utilization: bytes that must move over what the machine could move.

    Above 1 when the weights stay in a cache that is faster than the memory of the ceiling:
    that is reported, not clipped.
    """
    return cost.bytes / (seconds * ceilings.read_bytes_per_s)


def mfu_ratio(cost: StepCost, seconds: float, ceilings: Ceilings) -> float:
    """Model FLOPs utilization: FLOPs that must be done over what the machine could do."""
    return cost.flops / (seconds * ceilings.flops_per_s)


def fit_overhead(
    costs: Sequence[StepCost],
    num_tokens: Sequence[int],
    measured_s: Sequence[float],
    ceilings: Ceilings,
) -> Ceilings:
    """`ceilings` with overheads fitted to measured steps: least squares of the relative error.

    `num_tokens` are the new tokens of each step: B in decode, B·T in prefill. Neither overhead may
    be negative: a step that beats its floor fits zero overhead. Fit decode and prefill apart.
    """
    if not len(costs) == len(num_tokens) == len(measured_s) or len(costs) < 2:
        raise UserError("a fit of the overhead needs at least two measured cases")
    target = np.asarray(measured_s, dtype=float)
    excess = target - [floor_s(cost, ceilings) for cost in costs]
    terms = np.column_stack([np.ones(len(costs)), np.asarray(num_tokens, dtype=float)])
    (overhead, token_overhead), _ = nnls(terms / target[:, None], excess / target)
    return replace(ceilings, overhead_s=float(overhead), token_overhead_s=float(token_overhead))
