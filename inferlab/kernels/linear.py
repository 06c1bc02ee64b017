"""How does a decode step's product read its weights once, at the rate that memory gives them?

With a few rows of x the product is a read of W: the tensor cores need one instruction for thousands
of weights, and all that counts is that enough bytes are on their way at any time. Each program
copies tiles of W into shared memory several steps ahead of their use; where the tiles of y are too
few for the GPU, the inputs are split over programs too (see splitk). What would follow as launches
of its own is done to the sums before they are written: bias, residual, and silu(gate) * up, for
which a program takes the same channels of gate and of up.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from inferlab.errors import UserError
from inferlab.kernels import swiglu as swiglu_kernel
from inferlab.kernels import tiles
from inferlab.kernels.overlap import (
    LINE_BYTES,
    launch_options,
    let_next_start,
    prefetch,
    wait_for_previous,
)
from inferlab.kernels.splitk import PLAIN, cast, product
from inferlab.kernels.swiglu import silu

MOST_ROWS = 16  # beyond, a product computes as much as it reads: torch's are made for that
# (channels, inputs, warps, stages), the likeliest first; of a gated product twice the channels.
PLAIN_TILES = ((64, 128, 4, 5), (32, 256, 4, 5), (64, 256, 4, 3), (128, 128, 8, 4))
GATED_TILES = ((32, 128, 4, 5), (64, 128, 4, 3), (64, 64, 4, 5), (32, 256, 4, 3))
WIDE_TILES = ((32, 64, 4, 4), (64, 32, 4, 4))  # of numbers of 32 bits
RESIDENT = 3  # programs that share a multiprocessor
ROUNDS = (2, 4, 1, 8, 16)  # times over that programs may fill the GPU


@triton.jit
def _epilogue(
    total, gates, bias, residual, y, channels, rows, num_rows, out_features, residual_stride,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Write the sums [BLOCK_N, BLOCK_M] with all that follows the product; `gates` if GATED."""
    inside = channels < out_features
    wanted = inside[:, None] & (rows[None, :] < num_rows)
    if HAS_BIAS:
        if GATED:
            gates += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)[:, None]
            bias += out_features
        total += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)[:, None]
    if GATED:
        total = silu(gates) * total
    if HAS_RESIDUAL:
        places = residual + rows[None, :] * residual_stride + channels[:, None]
        total += tl.load(places, mask=wanted, other=0.0).to(tl.float32)
    places = y + rows[None, :] * out_features + channels[:, None]
    tl.store(places, cast(total, y.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["blocks_per_split", "early"])  # compiled once for all splits
def _multiply(
    x,  # [num_rows, in_features], rows x_stride apart
    weight,  # [out_features, in_features]; GATED: of gates, then as many of what they gate
    bias, residual,  # [out_features] (GATED: twice), [num_rows, out_features]; may be unused
    y,  # [num_rows, out_features]
    partials,  # float32 [splits, 2 if GATED else 1, num_rows, out_features], unused if not SPLIT
    counters,  # int32, one per tile, 0 before and after
    num_rows, out_features, in_features, x_stride, residual_stride, gate_span, blocks_per_split,
    early,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr, SPLIT: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_N, BLOCK_M] of y^T, over the blocks of one split.

    Grid: (tiles of rows, tiles of channels, splits); the first `early` programs start together.
    `gate_span`: numbers between a gate's weights and those of what it gates.
    """
    let_next_start(OVERLAP)
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    first = tl.program_id(2) * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(in_features, BLOCK_K))
    if PLAIN:
        first, last = first.handle.data.item(), last.handle.data.item()

    inside = channels < out_features
    LINE_NUMBERS: tl.constexpr = LINE_BYTES // (weight.dtype.element_ty.primitive_bitwidth // 8)
    places = weight + channels[:, None].to(tl.int64) * in_features + inputs[None, :]
    if OVERLAP:  # the weights do not depend on the kernel before
        order = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        if order < early:
            ahead: tl.constexpr = triton.next_power_of_2(STAGES) // 2 * BLOCK_K
            lines = tl.arange(0, ahead // LINE_NUMBERS) * LINE_NUMBERS
            lines = tl.minimum(first * BLOCK_K + lines, in_features - 1)
            some = tl.minimum(channels, out_features - 1).to(tl.int64) * in_features
            some_places = weight + some[:, None] + lines[None, :]
            prefetch(some_places)
            if GATED:
                prefetch(some_places + gate_span)
    wait_for_previous(OVERLAP)
    x_places = x + rows[None, :] * x_stride + inputs[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    gates = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in tl.range(first, last, num_stages=STAGES):
        start = block * BLOCK_K
        w_wanted, x_wanted = inside[:, None], rows[None, :] < num_rows
        if not WHOLE_BLOCKS:
            w_wanted = w_wanted & (start + inputs[None, :] < in_features)
            x_wanted = x_wanted & (start + inputs[:, None] < in_features)
        right = tl.load(x_places + start, mask=x_wanted, other=0.0)
        left = tl.load(places + start, mask=w_wanted, other=0.0)
        if GATED:
            gates = product(left, right, gates)
            left = tl.load(places + gate_span + start, mask=w_wanted, other=0.0)
        total = product(left, right, total)

    if SPLIT:
        size = num_rows * out_features
        shares = 2 if GATED else 1
        own = partials + rows[None, :] * out_features + channels[:, None]
        wanted = inside[:, None] & (rows[None, :] < num_rows)
        tl.store(own + tl.program_id(2) * shares * size, total, mask=wanted)
        if GATED:
            tl.store(own + (tl.program_id(2) * shares + 1) * size, gates, mask=wanted)
        tl.debug_barrier()  # every thread's share is written before the program is counted
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
        if arrived == tl.num_programs(2) - 1:
            total = tl.zeros_like(total)
            gates = tl.zeros_like(gates)
            splits = tl.num_programs(2)
            for part in range(splits.handle.data.item() if PLAIN else splits):
                # .cg: past the L1 cache, which does not see what other processors wrote
                place = own + part * shares * size
                total += tl.load(place, mask=wanted, other=0.0, cache_modifier=".cg")
                if GATED:
                    gates += tl.load(place + size, mask=wanted, other=0.0, cache_modifier=".cg")
            _epilogue(total, gates, bias, residual, y, channels, rows, num_rows, out_features,
                      residual_stride, HAS_BIAS, HAS_RESIDUAL, GATED)  # fmt: skip
            tl.store(counters + tile, 0)
    else:
        _epilogue(total, gates, bias, residual, y, channels, rows, num_rows, out_features,
                  residual_stride, HAS_BIAS, HAS_RESIDUAL, GATED)  # fmt: skip


def candidates(
    num_rows: int, out_features: int, in_features: int, processors: int,
    itemsize: int = 2, gated: bool = False,
) -> list[tiles.Tile]:  # fmt: skip
    """Tiles worth trying, the likeliest first; splits that fill the GPU as often as ROUNDS says."""
    block_m = 8 if num_rows <= 8 else 16
    shapes = WIDE_TILES if itemsize > 2 else GATED_TILES if gated else PLAIN_TILES
    found = []
    for block_n, block_k, warps, stages in shapes:
        num_tiles, blocks = triton.cdiv(out_features, block_n), triton.cdiv(in_features, block_k)
        for rounds in ROUNDS:
            splits = rounds * processors // num_tiles if num_tiles <= tiles.COUNTERS else 1
            splits = tiles.even_splits(splits, blocks)
            tile = tiles.Tile(block_n, block_m, warps, stages, splits, block_k)
            if tile not in found:
                found.append(tile)
    return found


def small_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    tile: tiles.Tile | None = None,
) -> torch.Tensor:
    """x [M, K] W^T + bias + residual -> [M, N] in x's dtype, sums in float32, rounded once.

    `weight` [N, K], contiguous, `bias` [N], `residual` [M, N]. `gated`: W holds gates, then as many
    channels that they gate, and silu(gate) * up [M, N / 2] is what `residual` is added to. One
    launch for M <= 16; beyond, torch's product and a pass for each of the rest. The first call of a
    shape times the candidate tiles (not while a CUDA graph is captured: warm up before).
    """
    channels, in_features = weight.shape
    if x.shape[1] != in_features or not weight.is_contiguous() or (gated and channels % 2):
        raise UserError(
            f"a product of {list(x.shape)} with weights {list(weight.shape)} needs as many inputs "
            "on both sides, contiguous weights and, gated, an even number of channels"
        )
    rows = x.shape[0]
    if rows > MOST_ROWS:
        y = F.linear(x, weight, bias)
        y = swiglu_kernel.swiglu(y) if gated else y
        return y if residual is None else y + residual
    channels = channels // 2 if gated else channels
    x = x if x.stride(1) == 1 else x.contiguous()
    if tile is None:
        call = partial(small_linear, x, weight, bias, residual, gated)
        make = partial(candidates, itemsize=x.element_size(), gated=gated)
        name = f"linear {x.dtype}{' gated' if gated else ''}"
        tile = tiles.choose(name, x, channels, call, make)
    y = x.new_empty(rows, channels)
    shares = (tile.splits, 1 + gated, rows, channels) if tile.splits > 1 else (1,)
    _multiply[tile.grid(rows, channels)](
        x, weight, x if bias is None else bias, x if residual is None else residual,
        y, torch.empty(shares, dtype=torch.float32, device=x.device), tiles.counters(y),
        rows, channels, in_features, x.stride(0), 0 if residual is None else residual.stride(0),
        channels * in_features,
        triton.cdiv(triton.cdiv(in_features, tile.block_k), tile.splits),
        RESIDENT * tiles.processors(x.device),
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, GATED=gated,
        WHOLE_BLOCKS=in_features % tile.block_k == 0, SPLIT=tile.splits > 1,
        BLOCK_N=tile.block_n, BLOCK_M=tile.block_m, BLOCK_K=tile.block_k, STAGES=tile.num_stages,
        num_warps=tile.num_warps, **launch_options(x.device),
    )  # fmt: skip
    return y
