"""What should a layout of keys and values cost: bytes a token, sequences that fit, seconds a step?

A layout is `mha`, `gqa` (as trained), `gqa-N` or `mqa`, which keep keys and values; `latent-R`,
which keeps R numbers and makes keys and values from them at each step; `absorbed-R`, the same with
values left unmade; and `decoupled-R`, DeepSeek's, which makes neither.
Letters: B sequences, S positions, L layers, G key/value heads, D head size, R rank.
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.models.cost import StepCost, decode_cost, dtype_bytes, layer_matmul_params
from inferlab.models.heads import check_rank, decoupled_rope_dim, layout_config
from inferlab.roofline import Ceilings, predict_s

LATENT = ("latent", "absorbed", "decoupled")


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout of one model; `kv_heads` share the keys and values, made (or kept) of `rank`."""

    name: str
    kind: str  # heads | latent | absorbed | decoupled
    config: ModelConfig  # of that many key/value heads
    rank: int = 0

    @property
    def kept_per_token(self) -> int:
        """Numbers that a layer keeps for a token."""
        if self.kind == "heads":
            return 2 * self.config.kv_size
        return self.rank + (self.rope_dim if self.kind == "decoupled" else 0)

    @property
    def rope_dim(self) -> int:
        """Rotated numbers that all heads share, beside the latent of a decoupled layout."""
        return decoupled_rope_dim(self.config)

    @property
    def made_per_token(self) -> int:
        """Numbers of keys and values that a layer makes for each cached token at each step."""
        return {"latent": 2, "absorbed": 1}.get(self.kind, 0) * self.config.kv_size

    @property
    def attention_flops(self) -> int:
        """FLOPs of one layer for one new token and one cached one: making, scores, sums."""
        config = self.config
        made = 2 * self.rank * self.made_per_token
        widths = {  # of a query in the scores, and of what is summed
            "absorbed": (config.head_dim, self.rank),
            "decoupled": (self.rank + self.rope_dim, self.rank),
        }
        score, mixed = widths.get(self.kind, (config.head_dim, config.head_dim))
        return made + 2 * config.num_q_heads * (score + mixed)

    @property
    def remake_flops(self) -> int:
        """The part of `attention_flops` that makes keys and values again."""
        return 2 * self.rank * self.made_per_token

    @property
    def layer_params(self) -> int:
        """Weights in one layer's matrix products."""
        config, hidden = self.config, self.config.hidden_size
        plain = layer_matmul_params(config)
        if self.kind == "heads":
            return plain
        factored = self.rank * (hidden + 2 * config.kv_size)
        if self.kind == "decoupled":
            factored += hidden * (config.num_q_heads + 1) * self.rope_dim
        return plain - 2 * hidden * config.kv_size + factored


def get_layout(config: ModelConfig, name: str) -> Layout:
    """The layout called `name` of a model; UserError for heads or ranks that it cannot have."""
    word, _, count = str(name).partition("-")
    if word not in LATENT:
        return Layout(name, "heads", layout_config(config, name))
    if not count.isdecimal():
        raise UserError(f"layout {str(name)[:40]!r} lacks its rank: write {word}-{config.kv_size}")
    check_rank(config, int(count))
    return Layout(name, word, config, int(count))


def kv_bytes_per_token(layout: Layout, dtype: str) -> int:
    """Bytes that one token of one sequence keeps, over all layers."""
    return layout.config.num_layers * layout.kept_per_token * dtype_bytes(dtype)


def cache_bytes(layout: Layout, dtype: str, batch_size: int, context_len: int) -> int:
    """Bytes of a cache of B sequences of S tokens; latents also keep one table of S angles."""
    angles = 0
    if layout.kind in ("latent", "absorbed"):
        angles = 2 * context_len * layout.config.head_dim * dtype_bytes(dtype)
    return batch_size * context_len * kv_bytes_per_token(layout, dtype) + angles


def largest_batch(layout: Layout, dtype: str, context_len: int, budget_bytes: float) -> int:
    """Sequences of S tokens whose cache fits `budget_bytes`; 0 when not even one does."""
    one, two = (cache_bytes(layout, dtype, count, context_len) for count in (1, 2))
    fixed, each = 2 * one - two, two - one
    return max(0, int((budget_bytes - fixed) // each))


def step_cost(layout: Layout, dtype: str, batch_size: int, context_len: int) -> StepCost:
    """What one decode step of B sequences at S = `context_len` positions must move and compute.

    As `models.cost.decode_cost`, for any layout. Keys and values that are made at each step count
    as FLOPs and not as bytes: a kernel could keep them on the chip.
    """
    config, size = layout.config, dtype_bytes(dtype)
    plain = decode_cost(config, dtype, batch_size, context_len)
    changed = config.num_layers * (layout.layer_params - layer_matmul_params(config))
    kept = batch_size * config.num_layers * layout.kept_per_token * size
    attention = 4 * config.q_size  # of the plain step, a layer and cached token
    more = config.num_layers * context_len * (layout.attention_flops - attention)
    return StepCost(
        weight_bytes=plain.weight_bytes + changed * size,
        kv_read_bytes=kept * context_len,
        kv_write_bytes=kept,
        flops=plain.flops + batch_size * (2 * changed + more),
    )


def remake_s(layout: Layout, batch_size: int, context_len: int, ceilings: Ceilings) -> float:
    """Seconds of making the keys and values of all cached tokens again, at the matrix rate."""
    flops = batch_size * context_len * layout.config.num_layers * layout.remake_flops
    return flops / ceilings.flops_per_s


def predict_step(
    layout: Layout, dtype: str, batch_size: int, context_len: int, ceilings: Ceilings
) -> Mapping[str, float]:
    """Expected seconds of a step and what of it is attention; throughput and cache bytes.

    Remade keys and values come on top of the roofline: nothing can be read for the next product
    while the chip multiplies for this one, layer by layer. Attention is the reading of what is kept
    and the making.
    """
    cost = step_cost(layout, dtype, batch_size, context_len)
    made_s = remake_s(layout, batch_size, context_len, ceilings)
    flops = cost.flops - made_s * ceilings.flops_per_s
    step_s = predict_s(replace(cost, flops=flops), ceilings, batch_size) + made_s
    attention_s = cost.kv_read_bytes / ceilings.read_bytes_per_s + made_s
    return {
        "step_s": step_s,
        "remake_s": made_s,
        "attention_share_ratio": min(1.0, attention_s / step_s),
        "output_tok_per_s": batch_size / step_s,
        "kv_bytes": cache_bytes(layout, dtype, batch_size, context_len),
        "remake_flops": made_s * ceilings.flops_per_s,
    }


def slope_s(layout: Layout, dtype: str, ceilings: Ceilings) -> float:
    """Seconds that each cached token of each sequence adds to a step: reading and remaking it."""
    kept = kv_bytes_per_token(layout, dtype) / ceilings.read_bytes_per_s
    made = layout.config.num_layers * layout.remake_flops / ceilings.flops_per_s
    return kept + made
