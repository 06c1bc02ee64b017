"""How are activations rounded to 8 bits while a model runs?

Symmetric: x ~ codes * scale, scale = the largest magnitude over the largest code, of each row
(dynamic: a row is a token) or fixed beforehand (static). Plain PyTorch, several passes over x; the
one-pass kernel in `inferlab.kernels.quantize_rows` gives the same numbers.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

import math

import torch

from inferlab.errors import UserError
from inferlab.kernels.reference import CODE_RANGES

SMALLEST = 1e-30  # stands in for the magnitude of a row of zeros, whose codes are 0 at any scale


def quantize_rows(
    x: torch.Tensor, dtype: torch.dtype = torch.int8, scale: torch.Tensor | float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] -> codes [M, K] of `dtype` and scales float32 [M, 1] with x ~ codes * scales.

    Without `scale` each row gets its own. With one, for all rows, larger values are cut off at the
    largest code, and it is returned as float32 [1]. Not checked, as this runs at every step: a row
    that holds inf or NaN becomes codes that mean nothing, the other rows are unharmed.
    """
    least, largest = CODE_RANGES[dtype]
    values = x.float()
    if scale is None:
        top = values.abs().amax(-1, keepdim=True).clamp_min(SMALLEST)
        scales, inverse = top / largest, top.reciprocal() * largest
    else:
        scales = torch.as_tensor(scale, dtype=torch.float32, device=x.device).reshape(1)
        inverse = scales.reciprocal()
    values = (values * inverse).clamp(least, largest)
    if dtype == torch.int8:
        values = values.round()
    return values.to(dtype), scales


def static_scale(absmax: float, dtype: torch.dtype = torch.int8) -> float:
    """The scale under which `absmax`, a magnitude from calibration, takes the largest code.

    UserError unless it is a positive finite number: calibration data with inf or NaN, or zeros
    alone, cannot say what a layer will see.
    """
    if not (math.isfinite(absmax) and absmax > 0):
        raise UserError(
            f"calibration found {absmax!r} as the largest input of a layer: check the calibration "
            "data for inf, NaN and empty rows"
        )
    return absmax / CODE_RANGES[dtype][1]
