"""How does one kernel turn activations into 8-bit codes, instead of five that each pass over them?

A program reads one row, keeps it in registers, finds its largest magnitude and writes codes and
scale: x is read once and a quarter (float32) or half (bfloat16) of its bytes are written. An
RMSNorm in front can be taken along. The same numbers as `quant.activations.quantize_rows`.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferlab.errors import UserError
from inferlab.kernels.reference import CODE_RANGES
from inferlab.kernels.splitk import rounded

LONGEST = 65536  # numbers of one row that the registers of a program hold
TO_WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no room for a fraction
SMALLEST = tl.constexpr(1e-30)  # a row of zeros has no scale of its own


@triton.jit
def _quantize(
    x, norm_weight, codes, scales, in_features, stride, eps, least, largest,
    STATIC: tl.constexpr, NORM: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes [M, K] of row `program_id(0)`, and its scale unless that is given (STATIC)."""
    row = tl.program_id(0).to(tl.int64)
    inputs = tl.arange(0, BLOCK)
    inside = inputs < in_features
    values = tl.load(x + row * stride + inputs, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(values * values, axis=0) / in_features
        weight = tl.load(norm_weight + inputs, mask=inside, other=0.0).to(tl.float32)
        values = values * tl.rsqrt(mean + eps) * weight
        values = rounded(values).to(tl.float32)  # as a norm of its own would have written them
    if STATIC:
        inverse = tl.div_rn(1.0, tl.load(scales))
    else:
        top = tl.maximum(tl.max(tl.abs(values), axis=0), SMALLEST)
        inverse = tl.div_rn(1.0, top) * largest
        tl.store(scales + row, tl.div_rn(top, largest))
    values = tl.minimum(tl.maximum(values * inverse, least), largest)
    if WHOLE:
        values = (values + TO_WHOLE) - TO_WHOLE  # nearest, ties to even
    tl.store(codes + row * in_features + inputs, values.to(codes.dtype.element_ty), mask=inside)


def quantize_rows(
    x: torch.Tensor,
    dtype: torch.dtype = torch.int8,
    scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] -> codes [M, K] and scales float32 [M, 1] with x ~ codes * scales, in one launch.

    `scale`: one float32 number to use for all rows, returned as it is. `norm_weight` [K] and `eps`:
    apply that RMSNorm first, rounded to bfloat16. A row with inf or NaN becomes unusable codes;
    nothing is checked, that would cost a pass.
    """
    rows, inputs = x.shape
    if inputs > LONGEST:
        raise UserError(f"rows of {inputs} numbers are too long for one program: at most {LONGEST}")
    codes = torch.empty(rows, inputs, dtype=dtype, device=x.device)
    scales = x.new_empty(rows, 1, dtype=torch.float32) if scale is None else scale
    x = x if x.stride(1) == 1 else x.contiguous()
    block = triton.next_power_of_2(inputs)
    _quantize[(rows,)](
        x, x if norm_weight is None else norm_weight, codes, scales, inputs, x.stride(0), eps,
        *CODE_RANGES[dtype], STATIC=scale is not None, NORM=norm_weight is not None,
        WHOLE=dtype == torch.int8, BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return codes, scales


@triton.jit
def _scale(
    sums, row_scales, channel_scales, y, out_features, SINGLE: tl.constexpr, BLOCK: tl.constexpr
):
    """y [M, N] = sums * row_scales * channel_scales; grid: (rows, blocks of channels)."""
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < out_features
    scale = tl.load(row_scales if SINGLE else row_scales + row)
    values = tl.load(sums + row * out_features + channels, mask=inside, other=0).to(tl.float32)
    values = values * scale * tl.load(channel_scales + channels, mask=inside, other=0.0)
    place = y + row * out_features + channels
    if y.dtype.element_ty == tl.bfloat16:
        tl.store(place, rounded(values), mask=inside)
    else:
        tl.store(place, values.to(y.dtype.element_ty), mask=inside)


def scale_product(
    sums: torch.Tensor, row_scales: torch.Tensor, channel_scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """int32 sums [M, N] times scales [M, 1] (or [1]) and [N] -> `dtype` [M, N], in one pass."""
    rows, channels = sums.shape
    y = torch.empty(rows, channels, dtype=dtype, device=sums.device)
    _scale[(rows, triton.cdiv(channels, 1024))](
        sums, row_scales, channel_scales, y, channels, SINGLE=row_scales.numel() == 1, BLOCK=1024
    )
    return y
