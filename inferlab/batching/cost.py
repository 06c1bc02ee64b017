"""What does a batch win in throughput and cost in latency, and what does padding waste? Arithmetic.

A step of B rows takes s(B); they get B / s(B) tokens a second, each of them 1 / s(B). The knee is
the batch size at which throughput over latency, B / s(B)^2, is largest: beyond it, another percent
of throughput costs more than a percent of latency.
Sources: Kleinrock 1979, "Power and deterministic rules of thumb" (the knee); Hockney and Jesshope
1981 (for s = t0 + a B it is t0 / a, where half of the greatest throughput is reached).
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inferlab import roofline
from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.models.cost import StepCost, decode_cost, prefill_cost
from inferlab.roofline import Ceilings

Line = tuple[float, float]  # seconds at no rows, and for each row


def step_lines(config: ModelConfig, dtype: str, context_len: int, ceilings: Ceilings) -> list[Line]:
    """A decode step by batch size: it takes the larger of reading and computing, two lines."""
    lines = []
    for seconds in (roofline.memory_s, roofline.compute_s):
        one, two = (seconds(decode_cost(config, dtype, b, context_len), ceilings) for b in (1, 2))
        slope = two - one
        lines.append((one - slope + ceilings.overhead_s, slope + ceilings.token_overhead_s))
    return lines


def knee_of_lines(lines: Sequence[Line]) -> float:
    """Batch size of 1 or more at which B / s(B)^2 is largest, s the larger of the lines.

    On one line that is t0 / a; of two, the best of both and of where they cross.
    """
    candidates = [1.0] + [fixed / slope for fixed, slope in lines if slope > 0]
    for index, (fixed, slope) in enumerate(lines):
        for other_fixed, other_slope in lines[index + 1 :]:
            if slope != other_slope:
                candidates.append((other_fixed - fixed) / (slope - other_slope))

    def power(batch_size: float) -> float:
        return batch_size / max(fixed + slope * batch_size for fixed, slope in lines) ** 2

    return max((c for c in candidates if c >= 1), key=power)


def predicted_knee(config: ModelConfig, dtype: str, context_len: int, ceilings: Ceilings) -> float:
    """The knee by the roofline: the ridge batch size, unless overheads or the cache come first.

    Rows bring their keys and values along: from some context on, they, not the arithmetic, end
    the flat part.
    """
    return knee_of_lines(step_lines(config, dtype, context_len, ceilings))


def measured_knee(step_s: Mapping[int, float]) -> float:
    """The knee of measured steps, batch size -> seconds; straight lines in between.

    The largest size itself where the knee was not reached: `reaches_knee` says so.
    """
    sizes = sorted(step_s)
    if len(sizes) < 2 or sizes[0] < 1 or not all(step_s[b] > 0 for b in sizes):
        raise UserError("a knee needs steps above 0 s of at least two batch sizes")
    candidates = [float(size) for size in sizes]
    at = {size: step_s[size] for size in sizes}
    for low, high in zip(sizes, sizes[1:], strict=False):
        slope = (step_s[high] - step_s[low]) / (high - low)
        if slope > 0 and low < (best := step_s[low] / slope - low) < high:
            # Seconds at no rows are s(low) - slope low; the knee of that line is t0 / a.
            candidates.append(best)
            at[best] = step_s[low] + slope * (best - low)
    return max(candidates, key=lambda size: size / at[size] ** 2)


def reaches_knee(step_s: Mapping[int, float]) -> bool:
    """Whether larger sizes than the knee were measured."""
    return measured_knee(step_s) < max(step_s)


def padding_waste_ratio(lengths: Sequence[int]) -> float:
    """Share of the positions of a padded batch that hold padding: 1 - sum / (B max)."""
    if not lengths or min(lengths) < 1:
        raise UserError("padding needs lengths of at least 1")
    return 1 - sum(lengths) / (len(lengths) * max(lengths))


def padded_prefill_cost(config: ModelConfig, dtype: str, lengths: Sequence[int]) -> StepCost:
    """Reading prompts of these lengths, padded to the longest.

    Where there is padding a mask is given, so attention computes all T^2 pairs of a row, not the
    T (T + 1) / 2 that a causal kernel needs.
    """
    padding_waste_ratio(lengths)  # refuses what has no lengths
    batch, longest = len(lengths), max(lengths)
    cost = prefill_cost(config, dtype, batch, longest)
    if min(lengths) == longest:
        return cost
    masked = 2 * longest * (longest - 1) * config.q_size * config.num_layers * batch
    return StepCost(cost.weight_bytes, cost.kv_read_bytes, cost.kv_write_bytes, cost.flops + masked)


def packed_prefill_cost(config: ModelConfig, dtype: str, lengths: Sequence[int]) -> StepCost:
    """The same without padding, all prompts in one row: weights are read once."""
    padding_waste_ratio(lengths)
    own = [prefill_cost(config, dtype, 1, length) for length in lengths]
    return StepCost(
        own[0].weight_bytes,
        sum(cost.kv_read_bytes for cost in own),
        sum(cost.kv_write_bytes for cost in own),
        sum(cost.flops for cost in own),
    )


PREFILL_WAYS = ("padded", "packed", "alone")


def predict_prefill_s(
    config: ModelConfig, dtype: str, lengths: Sequence[int], how: str, ceilings: Ceilings
) -> float:
    """Expected seconds to read prompts: "padded" or "packed" together, or each "alone"."""
    if how == "padded":
        tokens = len(lengths) * max(lengths)
        return roofline.predict_s(padded_prefill_cost(config, dtype, lengths), ceilings, tokens)
    if how == "packed":
        cost = packed_prefill_cost(config, dtype, lengths)
        return roofline.predict_s(cost, ceilings, sum(lengths))
    if how == "alone":
        one = (prefill_cost(config, dtype, 1, length) for length in lengths)
        return sum(roofline.predict_s(c, ceilings, n) for c, n in zip(one, lengths, strict=True))
    raise UserError(f"unknown prefill {str(how)[:40]!r}; known: {', '.join(PREFILL_WAYS)}")


def prefill_flops(config: ModelConfig, dtype: str, lengths: Sequence[int], how: str) -> float:
    """FLOPs of the same: one by one costs those of packing."""
    cost = padded_prefill_cost if how == "padded" else packed_prefill_cost
    return cost(config, dtype, lengths).flops


def predict_service_s(
    config: ModelConfig, dtype: str, batch_size: int, prompt_len: int, output_len: int,
    prefill: Ceilings, decode: Ceilings,
) -> float:  # fmt: skip
    """Expected seconds of a batch of equal requests, from its start to its last token."""
    read_s = roofline.predict_ttft_s(config, dtype, batch_size, prompt_len, prefill)
    middle = prompt_len + max(1, output_len // 2)
    step_s = roofline.predict_tpot_s(config, dtype, batch_size, middle, decode)
    return read_s + (output_len - 1) * step_s


def idle_rows_ratio(output_lens: Sequence[int]) -> float:
    """Share of the rows of a batch's steps that belong to answers which are complete.

    An answer of n tokens has n - 1 steps: its first token comes with the prompt.
    """
    if max(output_lens, default=0) == 1 == min(output_lens):
        return 0.0
    return 1 - (sum(output_lens) - len(output_lens)) / (len(output_lens) * (max(output_lens) - 1))
