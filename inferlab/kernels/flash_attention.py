"""How does attention over a prompt leave its T x S scores in registers?

A program takes a tile of queries and goes through the keys and values tile by tile, with a running
softmax (FlashAttention: Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691). Tiles that
causality hides are never visited; only those on the diagonal are masked.
Letters: B sequences, T new tokens, S positions, D head size, G key/value heads, R query heads each.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from inferlab.kernels import online_softmax
from inferlab.kernels.attention_reference import check_heads, check_positions
from inferlab.kernels.online_softmax import take_tile
from inferlab.kernels.splitk import PLAIN, cast


@dataclass(frozen=True, slots=True)
class FlashTile:
    """What one program holds: queries, keys and values of a step, warps to compute them."""

    block_t: int
    block_s: int
    num_warps: int


@triton.jit
def _walk(
    query, k_rows, v_rows, k_place, v_place, top, total, acc, first, last, sees, num_positions,
    scale, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
    HEAD: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Take the tiles from position `first` up to `last`; row i sees positions up to `sees[i]`."""
    dims = tl.arange(0, BLOCK_D)
    inside = dims < HEAD
    if PLAIN:
        first, last = first.handle.data.item(), last.handle.data.item()
    for start in tl.range(first, last, BLOCK_S, num_stages=STAGES):
        positions = start + tl.arange(0, BLOCK_S)
        k_places = k_rows + positions[:, None] * k_place + dims[None, :]
        v_places = v_rows + positions[:, None] * v_place + dims[None, :]
        there = positions < num_positions
        wanted = there[:, None]
        if HEAD != BLOCK_D:
            wanted = wanted & inside[None, :]
        if MASKED or HEAD != BLOCK_D:
            key = tl.load(k_places, mask=wanted, other=0.0)
            value = tl.load(v_places, mask=wanted, other=0.0)
        else:
            key, value = tl.load(k_places), tl.load(v_places)
        visible = there[None, :]
        if CAUSAL:
            visible = visible & (positions[None, :] <= sees[:, None])
        top, total, acc = take_tile(query, key, value, visible, scale, top, total, acc, MASKED)
    return top, total, acc


# Compiled once a model and size of tile, not once a prompt length.
@triton.jit(do_not_specialize=["num_new", "num_positions", "num_q"])
def _flash(
    queries,  # [B, T, G R, D]
    keys, values,  # [B, G, S, D]
    mixed,  # [B, T, G R, D], contiguous
    q_row, q_token, q_head, k_row, k_group, k_place, v_row, v_group, v_place,
    num_new, num_positions, num_q, scale,
    REPEATS: tl.constexpr, CAUSAL: tl.constexpr, HEAD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of new tokens, sequences x query heads); the longest tiles start first."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (tl.program_id(1) // num_q).to(tl.int64)
    head = tl.program_id(1) % num_q
    tokens = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    dims = tl.arange(0, BLOCK_D)
    kept = (tokens < num_new)[:, None] & (dims < HEAD)[None, :]
    places = queries + row * q_row + head.to(tl.int64) * q_head
    query = tl.load(
        places + tokens[:, None].to(tl.int64) * q_token + dims[None, :], mask=kept, other=0.0
    )
    group = (head // REPEATS).to(tl.int64)
    k_rows = keys + row * k_row + group * k_group
    v_rows = values + row * v_row + group * v_group

    top = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    sees = num_positions - num_new + tokens
    whole, last = num_positions, num_positions  # positions all rows see; that any row sees
    if CAUSAL:
        whole = tl.minimum(num_positions - num_new + tile * BLOCK_T + 1, num_positions)
        last = tl.minimum(num_positions - num_new + (tile + 1) * BLOCK_T, num_positions)
    whole = whole // BLOCK_S * BLOCK_S
    top, total, acc = _walk(
        query, k_rows, v_rows, k_place, v_place, top, total, acc, tl.full((), 0, tl.int32), whole,
        sees, num_positions, scale, CAUSAL, False, HEAD, BLOCK_S, BLOCK_D, STAGES,
    )  # fmt: skip
    top, total, acc = _walk(
        query, k_rows, v_rows, k_place, v_place, top, total, acc, whole, last,
        sees, num_positions, scale, CAUSAL, True, HEAD, BLOCK_S, BLOCK_D, STAGES,
    )  # fmt: skip
    out = mixed + ((row * num_new + tokens[:, None]) * num_q + head) * HEAD + dims[None, :]
    tl.store(out, cast(acc / total[:, None], mixed.dtype.element_ty), mask=kept)


def choose_tile(num_new: int, head_dim: int, item_bytes: int) -> FlashTile:
    """Tiles that keep the tensor cores busy and fit into the registers."""
    block_t = min(128, max(16, triton.next_power_of_2(num_new)))
    if item_bytes > 2:  # no tensor cores: for tests
        block_t = min(block_t, 32 if head_dim <= 64 else 16)
        return FlashTile(block_t, 32 if head_dim <= 128 else 16, 4)
    if head_dim > 128:
        return FlashTile(min(block_t, 64), 32, 4)
    return FlashTile(block_t, 64, 8 if block_t == 128 and head_dim > 64 else 4)


def flash_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: bool = True
) -> torch.Tensor:
    """Queries [B, T, G R, D], keys and values [B, G, S, D] -> [B, T, G R, D].

    bfloat16, float16 or float32, sums in float32. Causal: queries are the last T of S positions.
    Strides are free except for the last dimension's.
    """
    check_heads(queries, keys, values)
    batch, new, num_q, head_dim = queries.shape
    num_kv, total = keys.shape[1:3]
    check_positions(new, total, causal)
    online_softmax.check_tensors(queries, keys, values)
    queries, keys, values = (online_softmax.unit_stride(each) for each in (queries, keys, values))
    mixed = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    tile = choose_tile(new, head_dim, keys.element_size())
    block_d = max(16, triton.next_power_of_2(head_dim))
    row_bytes = block_d * keys.element_size()
    stages = online_softmax.stages_that_fit(
        keys.device, 2 * tile.block_s * row_bytes, tile.block_t * row_bytes
    )
    _flash[(triton.cdiv(new, tile.block_t), batch * num_q)](
        queries, keys, values, mixed,
        *queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
        new, total, num_q, online_softmax.base_two_scale(head_dim),
        REPEATS=num_q // num_kv, CAUSAL=causal, HEAD=head_dim,
        BLOCK_T=tile.block_t, BLOCK_S=tile.block_s, BLOCK_D=block_d,
        STAGES=stages, num_warps=tile.num_warps,
    )  # fmt: skip
    return mixed
