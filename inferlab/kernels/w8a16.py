"""How does a GPU multiply by 8-bit weights without writing them out first?

As `w4a16`, with one code a byte and one scale per output channel: every code is exact in bfloat16,
so the product is one of whole numbers and the scale follows once, in float32. An offset per channel
comes in as offset (sum of x), the sum from the tensor cores too.
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
WORDS = tl.constexpr(reference.WORDS_INT8)

# Two codes of $1, in two's complement: 128 + the lower 7 bits, minus 128 + 128 times the sign.
CONVERT = tl.constexpr("""{
    .reg .b32 low, sign, minus;
    mov.b32 minus, 0xbf80bf80;
    lop3.b32 low, $1, 0x007f007f, 0x43004300, 0xea;
    lop3.b32 sign, $1, 0x00800080, 0x43004300, 0xea;
    fma.rn.bf16x2 $0, sign, minus, low;
}""")


@triton.jit
def _half(words, HALF: tl.constexpr):
    """Codes [N, 32] words -> bfloat16 [N, 64]."""
    shifted = words >> (8 * HALF)
    if PLAIN:
        low, high = shifted << 24 >> 24, shifted << 8 >> 24
        both = tl.join(rounded(low.to(tl.float32)), rounded(high.to(tl.float32)))
        return both.reshape(words.shape[0], 64)
    else:
        pair = tl.inline_asm_elementwise(
            CONVERT, "=r,r", [shifted], dtype=tl.int32, is_pure=True, pack=1
        )
        return halves(pair)


@triton.jit
def _multiply(
    x,  # bfloat16 [num_rows, in_features], rows x_stride apart
    words,  # int32 [blocks, out_features, 32]
    scales, offsets,  # float32 [out_features]; offsets unused without HAS_OFFSETS
    y, partials, counters,  # see splitk.finish
    num_rows, out_features, in_features, x_stride, blocks_per_split,
    HAS_OFFSETS: tl.constexpr, WHOLE_BLOCKS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_N, BLOCK_M] of y^T, over the blocks of one split.

    Grid: (tiles of rows, tiles of channels, splits).
    """
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK)
    first = tl.program_id(2) * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(in_features, BLOCK))
    if PLAIN:
        first, last = first.handle.data.item(), last.handle.data.item()

    inside = channels < out_features
    places = words + channels[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    x_places = x + rows[None, :] * x_stride + inputs[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    ones = rounded(tl.full((BLOCK_N, BLOCK), 1.0, tl.float32))
    for block in tl.range(first, last, num_stages=STAGES):
        packed = tl.load(places + block * (out_features * WORDS), mask=inside[:, None], other=0)
        start = block * BLOCK
        wanted = rows[None, :] < num_rows
        if not WHOLE_BLOCKS:
            wanted = wanted & (start + inputs[:, None] < in_features)
        right = tl.load(x_places + start, mask=wanted, other=0.0)
        total = dot(beside(_half(packed, 0), _half(packed, 1)), right, total)
        if HAS_OFFSETS:
            sums = dot(ones, right, sums)
    total *= tl.load(scales + channels, mask=inside, other=0.0)[:, None]
    if HAS_OFFSETS:
        total += tl.load(offsets + channels, mask=inside, other=0.0)[:, None] * sums
    finish(total, y, partials, counters, tile, channels, rows, num_rows, out_features, SPLIT)


@triton.jit
def _dequantize(
    words, scales, offsets, weights, out_features, in_features,
    HAS_OFFSETS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write bfloat16 weights [out_features, in_features]; grid: (tiles of channels, blocks)."""
    block = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = channels < out_features
    place = words + (block * out_features + channels[:, None]) * WORDS + tl.arange(0, WORDS)
    packed = tl.load(place, mask=inside[:, None], other=0)
    values = beside(_half(packed, 0), _half(packed, 1)).to(tl.float32)
    values *= tl.load(scales + channels, mask=inside, other=0.0)[:, None]
    if HAS_OFFSETS:
        values += tl.load(offsets + channels, mask=inside, other=0.0)[:, None]
    inputs = block * BLOCK + tl.arange(0, BLOCK)
    wanted = inside[:, None] & (inputs[None, :] < in_features)
    place_out = weights + channels[:, None].to(tl.int64) * in_features + inputs[None, :]
    tl.store(place_out, rounded(values), mask=wanted)


def multiply(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    tile: tiles.Tile | None = None,
) -> torch.Tensor:
    """bfloat16 x [M, K] -> x W^T [M, N], W packed by `reference.pack_int8`, scales [N] float32.

    Beyond 256 rows the weights are written out once, and the product is torch's.
    """
    x = x.contiguous()
    rows, channels = x.shape[0], words.shape[1]
    if rows > tiles.WIDEST:
        return F.linear(x, dequantize(words, scales, offsets, x.shape[1]))
    if tile is None:
        call = partial(multiply, x, words, scales, offsets)
        tile = tiles.choose("w8a16", x, channels, call)
    y = x.new_empty(rows, channels)
    _multiply[tile.grid(rows, channels)](
        x, words, scales, scales if offsets is None else offsets,
        y, tile.partials(y), tiles.counters(y),
        rows, channels, x.shape[1], x.stride(0), triton.cdiv(words.shape[0], tile.splits),
        HAS_OFFSETS=offsets is not None, WHOLE_BLOCKS=x.shape[1] % reference.BLOCK == 0,
        SPLIT=tile.splits > 1, BLOCK_N=tile.block_n, BLOCK_M=tile.block_m, STAGES=tile.num_stages,
        num_warps=tile.num_warps,
    )  # fmt: skip
    return y


def dequantize(
    words: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, in_features: int
) -> torch.Tensor:
    """bfloat16 weights [N, K], each rounded once."""
    blocks, channels, _ = words.shape
    weights = words.new_empty(channels, in_features, dtype=torch.bfloat16)
    _dequantize[(triton.cdiv(channels, 64), blocks)](
        words, scales, scales if offsets is None else offsets, weights, channels, in_features,
        HAS_OFFSETS=offsets is not None, BLOCK_N=64,
    )  # fmt: skip
    return weights
