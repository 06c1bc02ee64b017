"""How does one kernel gate the MLP's inner activations, instead of two that pass over them?

silu(gate) * up: gate and up lie side by side, as the fused product writes them. Each number is read
once and computed in float32; what silu alone would have written and read again stays in registers.
Source: Shazeer, "GLU Variants Improve Transformer", 2020.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferlab.errors import UserError
from inferlab.kernels.overlap import launch_options, let_next_start, wait_for_previous
from inferlab.kernels.splitk import cast

WIDEST = 2048  # outputs of one program


@triton.jit
def silu(number):
    """number * sigmoid(number), float32; -0.0 far below zero, as it should."""
    return number / (1.0 + tl.exp(-number))


@triton.jit
def _swiglu(gate_up, y, inner_size, blocks, stride, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """`BLOCK` outputs of one row; grid: rows times blocks of a row."""
    let_next_start(OVERLAP)
    wait_for_previous(OVERLAP)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = columns < inner_size
    place = gate_up + row * stride + columns
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + inner_size, mask=inside, other=0.0).to(tl.float32)
    gated = cast(silu(gate) * up, y.dtype.element_ty)
    tl.store(y + row * inner_size + columns, gated, mask=inside)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """[M, 2 I], gates first -> silu(gate) * up [M, I] in the same dtype, rounded once."""
    rows, both = gate_up.shape
    if both % 2:
        raise UserError(f"swiglu needs as many gates as inputs, not {both} numbers a row: pad them")
    gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    inner = both // 2
    y = gate_up.new_empty(rows, inner)
    block = min(WIDEST, triton.next_power_of_2(inner))
    blocks = triton.cdiv(inner, block)
    _swiglu[(rows * blocks,)](
        gate_up, y, inner, blocks, gate_up.stride(0),
        BLOCK=block, num_warps=max(1, min(8, block // 256)), **launch_options(y.device),
    )  # fmt: skip
    return y
