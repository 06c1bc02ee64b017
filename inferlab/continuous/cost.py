"""How long should a step take that decodes some rows and reads some prompt? Predicted.

The floor of its bytes and FLOPs, weights counted once, with the overheads that were fitted to the
bare loop, not to the engine: what the engine adds shows up as a gap.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferlab import roofline
from inferlab.models.config import ModelConfig
from inferlab.models.cost import (
    StepCost,
    head_params,
    kv_bytes_per_token,
    layer_matmul_params,
    weight_read_bytes,
)
from inferlab.roofline import Ceilings
from inferlab.serving.scheduler import Segment, StepPlan

GATHERED = 2  # a copy in front of attention: keys and values are written and read once more


def is_decode(segment: Segment) -> bool:
    """Whether a segment is one token of a running answer, and not a piece of a prompt."""
    return segment.num_tokens == 1 and segment.start > 0


def segments_cost(config: ModelConfig, dtype: str, segments: Sequence[Segment]) -> StepCost:
    """Bytes and FLOPs of one pass over `segments`.

    A segment of n tokens behind s others attends to n s + n (n + 1) / 2 pairs, reads the keys and
    values of s + n positions once and writes n. Logits are made where a token is chosen.
    """
    tokens = sum(segment.num_tokens for segment in segments)
    reads = sum(segment.start + segment.num_tokens for segment in segments)
    pairs = sum(s.num_tokens * s.start + s.num_tokens * (s.num_tokens + 1) // 2 for s in segments)
    chosen = sum(segment.samples for segment in segments)
    per_token = kv_bytes_per_token(config, dtype)
    products = tokens * config.num_layers * layer_matmul_params(config)
    return StepCost(
        weight_bytes=weight_read_bytes(config, dtype),
        kv_read_bytes=reads * per_token,
        kv_write_bytes=tokens * per_token,
        flops=2 * (products + chosen * head_params(config))
        + 4 * pairs * config.q_size * config.num_layers,
    )


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Predicted seconds of a planned step; call it with a StepPlan.

    `prefill` and `decode` are the ceilings with the overheads fitted to each. `gathers`: blocks
    are copied together in front of attention (a CPU), not followed by a kernel.
    """

    config: ModelConfig
    dtype: str
    prefill: Ceilings
    decode: Ceilings
    gathers: bool = False

    def __call__(self, plan: StepPlan) -> float:
        """Floor, overhead of the step, overhead of each token by its kind, and the gather.

        A step that does both pays the larger overhead once: it is started once.
        """
        cost = segments_cost(self.config, self.dtype, plan.segments)
        rows = sum(map(is_decode, plan.segments))
        read = sum(segment.num_tokens for segment in plan.segments) - rows
        kinds = [one for one, count in ((self.decode, rows), (self.prefill, read)) if count]
        overhead_s = max(one.overhead_s for one in kinds)
        seconds = roofline.floor_s(cost, self.decode) + overhead_s
        seconds += rows * self.decode.token_overhead_s + read * self.prefill.token_overhead_s
        if self.gathers:
            past = sum(s.start + s.num_tokens for s in plan.segments if s.start)
            moved = GATHERED * past * kv_bytes_per_token(self.config, self.dtype)
            seconds += moved / self.decode.read_bytes_per_s
        return seconds

    def step_parts(self, batch_size: int, context_len: int) -> tuple[float, float]:
        """(seconds of a decode step whatever its rows, seconds a row), at `context_len` tokens.

        A straight line through steps of one row and of `batch_size` rows.
        """
        one, all_rows = (self._decode_s(rows, context_len) for rows in (1, max(batch_size, 2)))
        row_s = (all_rows - one) / (max(batch_size, 2) - 1)
        return one - row_s, row_s

    def _decode_s(self, rows: int, context_len: int) -> float:
        row = Segment(None, max(context_len - 1, 1), 1, True)
        return self(StepPlan((row,) * rows))
