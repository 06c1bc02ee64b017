"""How do queries and keys get their rotation, and keys and values their place, in one pass?

Between the fused product and attention lie: optional norms of queries and keys, two rotations and
two writes into the store, each a launch of its own that reads and writes a few kilobytes. Here a
program takes one head of one token: reads it once, norms it, turns it, and writes it to where
attention will read it: queries to a tensor of their own, keys and values straight to their slot.

What a cache gives to be written this way (`models.fused` asks for it in this order at each step):
  cache.begin(positions, mask), as a decoder calls it before the layers: makes room, may raise; from
      then on `view(layer).lengths` counts the new tokens too.
  cache.view(layer) -> StoreView, its tensors at the same addresses at every step (CUDA graphs).
      `view.slots(places)` -> int64 [B T] are the rows of the store, seen as [N P, G, D], where new
      tokens go (block times P plus place; -1, of a padded column: nowhere). It never waits for the
      device and is the same for dense and paged stores.
  cache.advance(T) after the layers, as ever.

Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from inferlab.errors import UserError
from inferlab.kernels.overlap import launch_options, let_next_start, wait_for_previous
from inferlab.kernels.splitk import cast

if TYPE_CHECKING:
    from inferlab.kvcache.view import StoreView

MANY_ROWS = 64  # beyond this, a program takes several tokens and heads
TOKENS, HEADS = 16, 4


@triton.jit
def _rotate_and_store(
    qkv, cosines, sines, slots, q_weight, k_weight, queries, keys, values,
    num_rows, num_q, num_kv, qkv_stride, cosines_stride, sines_stride, eps,
    block_size, key_block_stride, key_head_stride, key_place_stride,
    value_block_stride, value_head_stride, value_place_stride,
    NORM: tl.constexpr, KEEP: tl.constexpr, OVERLAP: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """`HEADS` heads of `TOKENS` tokens, a pair of halves [TOKENS, D / 2] each.

    Grid: (tokens, heads). KEEP also writes turned keys back into qkv.
    """
    let_next_start(OVERLAP)
    wait_for_previous(OVERLAP)
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    present = rows < num_rows
    rows = rows.to(tl.int64)[:, None]
    wanted = present[:, None]
    low, high = tl.arange(0, HALF)[None, :], tl.arange(0, HALF)[None, :] + HALF
    cos_low = tl.load(cosines + rows * cosines_stride + low, mask=wanted, other=0.0).to(tl.float32)
    cos_high = tl.load(cosines + rows * cosines_stride + high, mask=wanted, other=0.0)
    sin_low = tl.load(sines + rows * sines_stride + low, mask=wanted, other=0.0).to(tl.float32)
    sin_high = tl.load(sines + rows * sines_stride + high, mask=wanted, other=0.0)
    cos_high, sin_high = cos_high.to(tl.float32), sin_high.to(tl.float32)
    slot = tl.load(slots + rows, mask=wanted, other=-1)
    stored = slot >= 0
    block, place = slot // block_size, slot % block_size
    for step in tl.static_range(HEADS):
        head = tl.program_id(1) * HEADS + step
        if head < num_q + 2 * num_kv:
            source = qkv + rows * qkv_stride + head * (2 * HALF)
            first = tl.load(source + low, mask=wanted, other=0.0)
            second = tl.load(source + high, mask=wanted, other=0.0)
            if head < num_q + num_kv:
                left, right = first.to(tl.float32), second.to(tl.float32)
                if NORM:
                    mean = tl.sum(left * left + right * right, axis=1)[:, None] / (2 * HALF)
                    scale = tl.rsqrt(mean + eps)
                    is_query = head < num_q
                    weight_low = tl.where(
                        is_query, tl.load(q_weight + low), tl.load(k_weight + low)
                    )
                    weight_high = tl.where(
                        is_query, tl.load(q_weight + high), tl.load(k_weight + high)
                    )
                    left = left * scale * weight_low.to(tl.float32)
                    right = right * scale * weight_high.to(tl.float32)
                dtype: tl.constexpr = qkv.dtype.element_ty
                # The table holds the first half of the sines negated (models.layers.rope_table).
                first = cast(left * cos_low + right * sin_low, dtype)
                second = cast(right * cos_high + left * sin_high, dtype)
            if head < num_q:
                target = queries + (rows * num_q + head) * (2 * HALF)
                tl.store(target + low, first, mask=wanted)
                tl.store(target + high, second, mask=wanted)
            elif head < num_q + num_kv:
                group = (head - num_q).to(tl.int64)
                target = keys + block * key_block_stride + group * key_head_stride
                target += place * key_place_stride
                tl.store(target + low, first, mask=stored)
                tl.store(target + high, second, mask=stored)
                if KEEP:
                    tl.store(source + low, first, mask=wanted)
                    tl.store(source + high, second, mask=wanted)
            else:
                group = (head - num_q - num_kv).to(tl.int64)
                target = values + block * value_block_stride + group * value_head_stride
                target += place * value_place_stride
                tl.store(target + low, first, mask=stored)
                tl.store(target + high, second, mask=stored)


def rotate_and_store(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    view: StoreView,
    slots: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    keep_keys: bool = False,
) -> torch.Tensor:
    """qkv [M, (G R + 2 G) D] -> turned queries [M, G R, D]; keys and values go to `slots`.

    `cosines`, `sines` [M, D]: rows of `models.layers.rope_table`, the first half of the sines
    negated. `view`: keys and values [N, G, P, D], written at `slots` int64 [M] (-1: not); its
    lengths and tables are not looked at, and no slot is checked, that would wait for the device.
    `q_weight`, `k_weight` [D] and `eps`: an RMSNorm of each head first (Qwen 3). `keep_keys`: the
    turned keys also replace those in qkv, where a prefill reads them. Sources: Su et al.,
    "RoFormer", 2021; slots as in Kwon et al., "PagedAttention", 2023.
    """
    keys, values = view.keys, view.values
    num_kv, head_dim = keys.shape[1], keys.shape[3]
    rows = qkv.shape[0]
    check_head_dim(head_dim)
    num_q = qkv.shape[1] // head_dim - 2 * num_kv
    queries = qkv.new_empty(rows, num_q, head_dim)
    many = rows > MANY_ROWS
    tokens, heads = (TOKENS, HEADS) if many else (1, 1)
    norm = q_weight is not None
    _rotate_and_store[(triton.cdiv(rows, tokens), triton.cdiv(num_q + 2 * num_kv, heads))](
        qkv, cosines, sines, slots, q_weight if norm else qkv, k_weight if norm else qkv,
        queries, keys, values,
        rows, num_q, num_kv, qkv.stride(0), cosines.stride(0), sines.stride(0), eps,
        keys.shape[2], *keys.stride()[:3], *values.stride()[:3],
        NORM=norm, KEEP=keep_keys, TOKENS=tokens, HEADS=heads, HALF=head_dim // 2,
        num_warps=4 if many else 1, **launch_options(qkv.device),
    )  # fmt: skip
    return queries


def check_head_dim(head_dim: int) -> None:
    """UserError for a head size that the kernels do not take."""
    if head_dim < 2 or head_dim & (head_dim - 1):
        raise UserError(
            f"the fused kernels take heads whose size is a power of two, not {head_dim}: "
            "use the plain decoder for this model"
        )
