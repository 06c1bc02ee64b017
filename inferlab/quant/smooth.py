"""How much of an activation channel's range should its weights take over?

Activations have a few channels far larger than the rest; weights are even. For any s > 0,
x W^T = (x / s)(W diag(s))^T: dividing channel j by s_j makes activations easier to round and
weights harder. SmoothQuant meets in between: s_j = max|x_j|^alpha / max|W_j|^(1 - alpha).
Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", 2022, equation 4.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

import torch

from inferlab.errors import UserError

FLOOR = 1e-5  # smallest range and scale: a dead channel must not divide by zero


def migration_scales(
    input_absmax: torch.Tensor, weight_absmax: torch.Tensor, alpha: float = 0.5
) -> torch.Tensor:
    """[K] what to divide each input channel by and multiply its weights with.

    `input_absmax` and `weight_absmax` [K] are the largest magnitudes of each channel in the
    calibration data and in the weight's column. alpha 0 evens out the weights alone, 1 the
    activations alone. A channel that is zero in either is left as it is (1).
    UserError for another range of alpha, other shapes, or numbers that are not finite.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha:g}: give 0 (weights only) to 1 (activations only)")
    if input_absmax.dim() != 1 or input_absmax.shape != weight_absmax.shape:
        raise UserError(
            f"activation ranges {list(input_absmax.shape)} and weight ranges "
            f"{list(weight_absmax.shape)} must be vectors of one length"
        )
    for what, ranges in (("activation", input_absmax), ("weight", weight_absmax)):
        if not torch.isfinite(ranges).all() or (ranges < 0).any():
            raise UserError(f"the {what} ranges hold inf, NaN or a negative number: observe again")
    inputs, weights = input_absmax.float(), weight_absmax.float()
    scales = inputs.clamp(min=FLOOR) ** alpha / weights.clamp(min=FLOOR) ** (1 - alpha)
    alive = (inputs > 0) & (weights > 0)
    return torch.where(alive, scales.clamp(min=FLOOR), torch.ones_like(scales))
