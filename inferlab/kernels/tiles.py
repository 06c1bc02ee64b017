"""Which tile sizes suit a matrix, and how is that found out on the GPU at hand?

A tile is the part of y^T that one program computes. Too few programs leave processors idle, too
many read x too often and add up too many shares; so a handful of candidates is timed once per
shape, on the operands of the first call, with the caches emptied before each run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from inferlab.kernels.reference import BLOCK, num_blocks

COUNTERS = 4096  # tiles of a split product that can be counted at once
WIDEST = 256  # rows up to which the weights are unpacked in registers
FEW_ROWS = ((128, 4, 4), (64, 4, 4), (128, 8, 5))  # channels, warps, stages
MANY_ROWS = ((128, 8, 3), (64, 4, 3))
_chosen: dict[tuple, Tile] = {}
_counters: dict[torch.device, torch.Tensor] = {}


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of one program, and over how many programs the inputs of a tile are split."""

    block_n: int  # output channels
    block_m: int  # rows
    num_warps: int
    num_stages: int  # steps of which one is computed while the others are on their way
    splits: int
    block_k: int = BLOCK  # inputs of a step

    def grid(self, num_rows: int, out_features: int) -> tuple[int, int, int]:
        """Programs by tiles of rows, tiles of channels, splits."""
        tiles = triton.cdiv(num_rows, self.block_m), triton.cdiv(out_features, self.block_n)
        return (*tiles, self.splits)

    def partials(self, y: torch.Tensor) -> torch.Tensor:
        """Room for the shares of y [M, N]; a single number where there is no split."""
        shape = (self.splits, *y.shape) if self.splits > 1 else (1,)
        return torch.empty(shape, dtype=torch.float32, device=y.device)


def candidates(num_rows: int, out_features: int, in_features: int, processors: int) -> list[Tile]:
    """Tiles worth trying, the likeliest first; splits that fill the GPU one to eight times over."""
    block_m = min(128, max(8, triton.next_power_of_2(num_rows)))
    few = block_m <= 32
    found = []
    for block_n, warps, stages in FEW_ROWS if few else MANY_ROWS:
        tiles = triton.cdiv(num_rows, block_m) * triton.cdiv(out_features, block_n)
        for rounds in (4, 2, 8, 1) if few else (1, 2):
            splits = rounds * processors // tiles if tiles <= COUNTERS else 1
            splits = even_splits(splits, num_blocks(in_features))
            tile = Tile(block_n, block_m, warps, stages, splits)
            if tile not in found:
                found.append(tile)
    return found


def even_splits(splits: int, blocks: int) -> int:
    """The number of programs that share `blocks` when each takes as many, at least two."""
    share = max(2, triton.cdiv(blocks, max(1, splits)))
    return triton.cdiv(blocks, share)


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a few for the interpreter."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def choose(
    name: str,
    x: torch.Tensor,
    out_features: int,
    run: Callable[..., object],
    make: Callable[[int, int, int, int], list[Tile]] = candidates,
) -> Tile:
    """The fastest candidate for x [M, K] and N; `run(tile=...)` launches one. Timed once per shape.

    Not timed where it cannot be: in Triton's interpreter and while a CUDA graph is captured (warm
    up before capturing). Rows that need the same width share a choice.
    """
    num_rows, in_features = x.shape
    key = (name, x.device, triton.next_power_of_2(num_rows), out_features, in_features)
    if key not in _chosen:
        tiles = make(num_rows, out_features, in_features, processors(x.device))
        if x.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return tiles[0]
        _chosen[key] = min(tiles, key=lambda tile: _milliseconds(run, tile))
    return _chosen[key]


def _milliseconds(run: Callable[..., object], tile: Tile) -> float:
    """Median milliseconds of a launch with cold caches; infinite where the tile does not fit."""
    try:
        return triton.testing.do_bench(
            lambda: run(tile=tile), warmup=3, rep=15, return_mode="median"
        )
    except triton.runtime.errors.OutOfResources:
        return float("inf")


def counters(y: torch.Tensor) -> torch.Tensor:
    """Zeros that every launch leaves as zeros; launches that share them must not overlap.

    Never replaced: a captured CUDA graph keeps the address.
    """
    if y.device not in _counters:
        _counters[y.device] = torch.zeros(COUNTERS, dtype=torch.int32, device=y.device)
    return _counters[y.device]
