"""How does one kernel add to the residual stream and norm it, instead of three that pass over it?

A program keeps whole rows in registers: it reads x and the residual once, writes their sum and the
norm of the sum. The sum is rounded before it is normed, as two operations would; the norm is
computed in float32 and rounded once.
Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferlab.errors import UserError
from inferlab.kernels.overlap import (
    LINE_BYTES,
    launch_options,
    let_next_start,
    prefetch,
    wait_for_previous,
)
from inferlab.kernels.splitk import cast

LONGEST = 65536  # numbers of one row that the registers of a program hold
TILE = 4096  # numbers that a program takes when there are rows enough to fill the GPU
MANY_ROWS = 1024


@triton.jit
def _add_rms_norm(
    x, residual, weight, normed, total,
    num_rows, size, x_stride, residual_stride, eps,
    ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Rows `ROWS * program_id(0)` and on: total = x + residual (if ADD), normed = its norm."""
    let_next_start(OVERLAP)
    LINE: tl.constexpr = LINE_BYTES // (weight.dtype.element_ty.primitive_bitwidth // 8)
    if OVERLAP and BLOCK >= LINE:
        prefetch(weight + tl.minimum(tl.arange(0, BLOCK // LINE) * LINE, size - 1))
    wait_for_previous(OVERLAP)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    wanted = (rows < num_rows) & (columns < size)
    scale = tl.load(weight + columns, mask=columns < size, other=0.0).to(tl.float32)
    values = tl.load(x + rows * x_stride + columns, mask=wanted, other=0.0).to(tl.float32)
    if ADD:
        places = residual + rows * residual_stride + columns
        values += tl.load(places, mask=wanted, other=0.0).to(tl.float32)
        written = cast(values, total.dtype.element_ty)
        tl.store(total + rows * size + columns, written, mask=wanted)
        values = written.to(tl.float32)
    mean = tl.sum(values * values, axis=1)[:, None] / size
    values = values * tl.rsqrt(mean + eps) * scale
    written = cast(values, normed.dtype.element_ty)
    tl.store(normed + rows * size + columns, written, mask=wanted)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of the sum, sum) of x [M, H] and residual [M, H], both of x's dtype; one launch.

    Without a residual the sum is x itself, not written again. `weight` [H]. UserError beyond 65536
    numbers a row.
    """
    rows, size = x.shape
    if size > LONGEST:
        raise UserError(f"rows of {size} numbers are too long for one program: at most {LONGEST}")
    x = x if x.stride(1) == 1 else x.contiguous()
    normed = x.new_empty(rows, size)
    add = residual is not None
    if add and residual.stride(1) != 1:
        residual = residual.contiguous()
    total = x.new_empty(rows, size) if add else x
    block = triton.next_power_of_2(size)
    per_program = max(1, TILE // block) if rows >= MANY_ROWS else 1
    _add_rms_norm[(triton.cdiv(rows, per_program),)](
        x, residual if add else x, weight, normed, total,
        rows, size, x.stride(0), residual.stride(0) if add else 0, eps,
        ADD=add, ROWS=per_program, BLOCK=block,
        num_warps=min(16, max(1, per_program * block // 512)), **launch_options(x.device),
    )  # fmt: skip
    return normed, total
