"""Which weights must be rounded most carefully, when only the activations can tell?

A weight matters as much as the activation that it meets. Multiplying column j of W by s_j before
rounding, and dividing channel j of the input by it, shrinks the error that the channel sees by
s_j, as long as the group's largest weight does not grow with it. AWQ takes
s_j = (mean |x_j|)^alpha and searches the one number alpha for the smallest output error.
Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and
Acceleration", 2023, section 3.2. Left out: its search for clipped ranges (section 5.1's setup).
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inferlab.errors import UserError
from inferlab.quant.formats import WeightFormat
from inferlab.quant.grid import quantize

SMALLEST_SCALE = 1e-4  # as in the authors' code: a channel that is never used keeps a finite scale


@dataclass(frozen=True, slots=True)
class AwqScales:
    """What to multiply each input channel's weights with, and divide its activation by."""

    scales: torch.Tensor  # [K] float32, geometric middle 1
    alpha: float  # 0: plain round to nearest
    error: float  # ||X (W - W')^T||^2 / ||X W^T||^2 on the sampled inputs
    unscaled_error: float  # the same at alpha 0


def search_scales(
    weight: torch.Tensor,
    inputs: torch.Tensor,
    format: WeightFormat,
    steps: int = 20,
    importance: torch.Tensor | None = None,
) -> AwqScales:
    """The best of alpha = 0, 1/steps, ..., 1 for [N, K] `weight` and n sampled `inputs` [n, K].

    `importance` [K] replaces mean |x| over the sample (a mean over more tokens, or one shared by
    channels that must have one scale). alpha 0 is among the candidates, so that the error on the
    sample never exceeds that of round to nearest. UserError for inputs of another width, none at
    all, or not finite.
    """
    inputs = inputs.float()
    importance = _checked_importance(weight, inputs, importance)
    if steps < 1:
        raise UserError(f"a search of {steps} steps has no candidates: give 1 or more")
    exact = inputs @ weight.float().t()
    power = exact.square().sum().item() or 1.0
    best, unscaled_error = None, 0.0
    for step in range(steps + 1):
        alpha = step / steps
        scales = scales_from_importance(importance, alpha)
        rounded = quantize(weight * scales, format).dequantize() / scales
        error = (inputs @ rounded.t() - exact).square().sum().item() / power
        if step == 0:
            unscaled_error = error
        if best is None or error < best.error:
            best = AwqScales(scales, alpha, error, unscaled_error)
    return best


def scales_from_importance(importance: torch.Tensor, alpha: float) -> torch.Tensor:
    """[K] importance^alpha, divided by the geometric middle of the extremes, sqrt(max min)."""
    scales = importance.float().clamp(min=SMALLEST_SCALE) ** alpha
    return scales / (scales.max() * scales.min()).sqrt()


def _checked_importance(
    weight: torch.Tensor, inputs: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """mean |x| [K] unless given; refuses what cannot be searched."""
    width = weight.shape[1]
    if inputs.ndim != 2 or inputs.shape[1] != width or not len(inputs):
        raise UserError(
            f"calibration inputs are {list(inputs.shape)} and the layer has {width} inputs: "
            f"give [tokens, {width}] with at least one token"
        )
    if importance is None:
        importance = inputs.abs().mean(0)
    if importance.shape != (width,):
        raise UserError(f"importance is {list(importance.shape)}: give one number per input")
    if not torch.isfinite(inputs).all() or not torch.isfinite(importance).all():
        raise UserError("calibration inputs hold inf or NaN: observe the decoder again")
    return importance
