"""How is a softmax over many scores taken without ever holding them all?

Tile by tile, with a running maximum and a running sum; what was summed before is scaled down when
the maximum grows (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135).
Everything is in powers of two: a GPU has an instruction for 2^x, not for e^x.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl

from inferlab import kernels
from inferlab.errors import UserError
from inferlab.kernels.splitk import cast, product

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST_HEAD = 256  # numbers of a head that the registers of a program hold
MOST_STAGES = 3


@triton.jit
def take_tile(queries, keys, values, visible, scale, top, total, mixed, MASKED: tl.constexpr):
    """Take a tile of keys and values [N, D] into the running softmax of queries [M, D].

    `top` and `total` [M]: maximum of the scores (times scale, base 2) and sum of the weights;
    `mixed` [M, D] float32: sum of weighted values. `visible` ([M, N] or broadcast to it) counts
    when MASKED; the first tile of a row must show it at least one position.
    """
    scores = tl.zeros((queries.shape[0], keys.shape[0]), tl.float32)
    scores = product(queries, tl.trans(keys), scores)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, axis=1)
    mixed = product(cast(weights, values.dtype), values, mixed * shrink[:, None])
    return new_top, total, mixed


def base_two_scale(head_dim: int) -> float:
    """1 / sqrt(D), times log2(e): with it, powers of two give a softmax of base e."""
    return math.log2(math.e) * head_dim**-0.5


def check_tensors(*tensors: torch.Tensor) -> None:
    """Refuse what the kernels cannot take: another dtype, larger heads, a device without them."""
    first = tensors[0]
    if first.device.type != "cuda" and (why := kernels.why_unavailable(first.device)):
        raise UserError(why)
    if any(tensor.device != first.device for tensor in tensors):
        raise UserError("queries, keys and values must be on one device")
    if first.dtype not in DTYPES or any(tensor.dtype != first.dtype for tensor in tensors):
        found = ", ".join(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        raise UserError(f"attention kernels take one of bfloat16, float16, float32, not {found}")
    if first.shape[-1] > LARGEST_HEAD:
        raise UserError(f"heads of {first.shape[-1]} numbers are too large: at most {LARGEST_HEAD}")


def unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with neighbouring numbers of a head next to each other; a copy only if need be."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@functools.cache
def stages_that_fit(
    device: torch.device, stage_bytes: int, other_bytes: int, programs: int = 1
) -> int:
    """Steps of a loop under way at once, so that `programs` share a multiprocessor's memory.

    A step that is computed from registers needs no room: one more than there is room for.
    """
    if device.type != "cuda":
        return MOST_STAGES
    index = torch.cuda.current_device() if device.index is None else device.index
    room = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return max(1, min(MOST_STAGES, (room // programs - other_bytes) // stage_bytes + 1))
