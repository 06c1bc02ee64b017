"""How does a GPU multiply by 4-bit weights without writing them out first?

The packed codes are read once and become bfloat16 weights in registers, the left operand of the
tensor cores: y^T = W x^T, so that a few rows of x cost a narrow tile and not a wide, empty one.
A code u = 0..15 needs no conversion: 0x4300 | u is the bfloat16 128 + u. Both codes of a pair are
handled at once, so that a weight costs about two instructions; a decode step is bound by memory
only while these fit into the time that its bytes take.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from inferlab.kernels import reference, tiles
from inferlab.kernels.splitk import PLAIN, beside, dot, finish, halves, rounded

BLOCK = tl.constexpr(reference.BLOCK)
WORDS = tl.constexpr(reference.WORDS)

# Two codes of $1, with scale (lower half) and offset (upper half) of $2, to two bfloat16 weights:
# 128 + u, minus 136 (exact), times scale plus offset (one rounding).
DEQUANTIZE = tl.constexpr("""{
    .reg .b32 code, one, middle, scale, offset;
    mov.b32 one, 0x3f803f80;
    mov.b32 middle, 0xc308c308;
    prmt.b32 scale, $2, $2, 0x1010;
    prmt.b32 offset, $2, $2, 0x3232;
    lop3.b32 code, $1, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 code, code, one, middle;
    fma.rn.bf16x2 $0, code, scale, offset;
}""")


@triton.jit
def _quarter(words, grids, QUARTER: tl.constexpr):
    """Codes [N, 16] words, scales and offsets [N, 1] -> bfloat16 weights [N, 32]."""
    shifted = words >> (4 * QUARTER)
    if PLAIN:
        scale = (grids << 16).to(tl.float32, bitcast=True)
        offset = (grids & -65536).to(tl.float32, bitcast=True)
        low = ((shifted & 15).to(tl.float32) - 8.0) * scale + offset
        high = (((shifted >> 16) & 15).to(tl.float32) - 8.0) * scale + offset
        return tl.join(rounded(low), rounded(high)).reshape(words.shape[0], 32)
    else:
        pair = tl.inline_asm_elementwise(
            DEQUANTIZE, "=r,r,r", [shifted, grids], dtype=tl.int32, is_pure=True, pack=1
        )
        return halves(pair)


@triton.jit
def _weights(words, grids, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Quarters FIRST .. FIRST + COUNT - 1 of a block: bfloat16 weights [N, 32 COUNT]."""
    weights = _quarter(words, grids, FIRST)
    if COUNT > 1:
        weights = beside(weights, _quarter(words, grids, FIRST + 1))
    if COUNT > 2:
        third, fourth = _quarter(words, grids, FIRST + 2), _quarter(words, grids, FIRST + 3)
        weights = beside(weights, beside(third, fourth))
    return weights


@triton.jit
def _multiply(
    x,  # bfloat16 [num_rows, in_features], rows x_stride apart
    words,  # int32 [blocks, out_features, 16]
    grids,  # int32 [groups, out_features]: scale and offset
    y, partials, counters,  # see splitk.finish
    num_rows, out_features, in_features, x_stride, blocks_per_split,
    GROUPS: tl.constexpr,  # groups in a block: 4, 2 or 1
    SPAN: tl.constexpr,  # blocks in a group, where it is longer than a block
    WHOLE_BLOCKS: tl.constexpr,  # the inputs fill their last block
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_N, BLOCK_M] of y^T, over the blocks of one split.

    Grid: (tiles of rows, tiles of channels, splits). A channel is read in pieces of 64 bytes, and
    the pieces of neighbouring channels lie side by side.
    """
    SHARE: tl.constexpr = BLOCK // GROUPS  # inputs of a block that share a scale
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, SHARE)
    first = tl.program_id(2) * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(in_features, BLOCK))
    if PLAIN:
        first, last = first.handle.data.item(), last.handle.data.item()

    inside = channels < out_features
    word_places = words + channels[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    x_places = x + rows[None, :] * x_stride + inputs[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in tl.range(first, last, num_stages=STAGES):
        packed = tl.load(
            word_places + block * (out_features * WORDS), mask=inside[:, None], other=0
        )
        for part in tl.static_range(GROUPS):
            start = block * BLOCK + part * SHARE
            wanted = rows[None, :] < num_rows
            if not WHOLE_BLOCKS:
                wanted = wanted & (start + inputs[:, None] < in_features)
            right = tl.load(x_places + start, mask=wanted, other=0.0)
            group = block // SPAN * GROUPS + part
            grid = tl.load(grids + group * out_features + channels, mask=inside, other=0)
            left = _weights(packed, grid[:, None], part * (4 // GROUPS), 4 // GROUPS)
            total = dot(left, right, total)
    finish(total, y, partials, counters, tile, channels, rows, num_rows, out_features, SPLIT)


@triton.jit
def _dequantize(
    words, grids, weights, out_features, in_features,
    GROUPS: tl.constexpr, SPAN: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write bfloat16 weights [out_features, in_features]; grid: (tiles of channels, blocks)."""
    SHARE: tl.constexpr = BLOCK // GROUPS
    block = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = channels < out_features
    place = words + (block * out_features + channels[:, None]) * WORDS + tl.arange(0, WORDS)
    packed = tl.load(place, mask=inside[:, None], other=0)
    for part in tl.static_range(GROUPS):
        group = block // SPAN * GROUPS + part
        grid = tl.load(grids + group * out_features + channels, mask=inside, other=0)
        values = _weights(packed, grid[:, None], part * (4 // GROUPS), 4 // GROUPS)
        inputs = block * BLOCK + part * SHARE + tl.arange(0, SHARE)
        wanted = inside[:, None] & (inputs[None, :] < in_features)
        place_out = weights + channels[:, None].to(tl.int64) * in_features + inputs[None, :]
        tl.store(place_out, values, mask=wanted)


def multiply(
    x: torch.Tensor,
    words: torch.Tensor,
    grids: torch.Tensor,
    group_size: int,
    tile: tiles.Tile | None = None,
) -> torch.Tensor:
    """bfloat16 x [M, K] -> x W^T [M, N], W packed by `reference.pack_int4` and `pack_grids`.

    `group_size` 0: one scale per channel. Beyond 256 rows the weights are written out once, because
    then the product, not reading them, takes the time. `tile`: instead of the fastest one.
    """
    x = x.contiguous()
    rows, channels = x.shape[0], words.shape[1]
    if rows > tiles.WIDEST:
        return F.linear(x, dequantize(words, grids, x.shape[1], group_size))
    if tile is None:
        call = partial(multiply, x, words, grids, group_size)
        tile = tiles.choose(f"w4a16/{group_size}", x, channels, call)
    y = x.new_empty(rows, channels)
    _multiply[tile.grid(rows, channels)](
        x, words, grids, y, tile.partials(y), tiles.counters(y),
        rows, channels, x.shape[1], x.stride(0), triton.cdiv(words.shape[0], tile.splits),
        WHOLE_BLOCKS=x.shape[1] % reference.BLOCK == 0, SPLIT=tile.splits > 1,
        BLOCK_N=tile.block_n, BLOCK_M=tile.block_m, STAGES=tile.num_stages,
        num_warps=tile.num_warps, **_groups(group_size),
    )  # fmt: skip
    return y


def dequantize(
    words: torch.Tensor, grids: torch.Tensor, in_features: int, group_size: int
) -> torch.Tensor:
    """bfloat16 weights [N, K], each rounded once."""
    blocks, channels, _ = words.shape
    weights = words.new_empty(channels, in_features, dtype=torch.bfloat16)
    _dequantize[(triton.cdiv(channels, 64), blocks)](
        words, grids, weights, channels, in_features, BLOCK_N=64, **_groups(group_size)
    )
    return weights


def _groups(group_size: int) -> dict[str, int]:
    """Groups in a block, and blocks in a group."""
    if not group_size:
        return {"GROUPS": 1, "SPAN": 2**30}
    return {
        "GROUPS": max(1, reference.BLOCK // group_size),
        "SPAN": max(1, group_size // reference.BLOCK),
    }
