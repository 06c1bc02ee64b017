"""What does rounding a weight matrix to a low-bit grid do to it?

Round to nearest: per group the scale is the width of the group's values over the number of steps,
the code the nearest step. Scales and offsets are rounded to bfloat16 here, once, so that quality
is judged on exactly the numbers that a packed kernel multiplies by.
Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018 (affine grids).
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from inferlab.errors import UserError
from inferlab.kernels.reference import weight_of
from inferlab.quant.formats import WeightFormat

SMALLEST_SCALE = torch.finfo(torch.bfloat16).tiny  # below it a bfloat16 has fewer digits
LARGEST_WEIGHT = torch.finfo(torch.float32).max / 4  # beyond it a group's width may overflow


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight matrix [N, K] on a grid: w ~ codes * scales (+ offsets).

    codes: int8 [N, K], signed (int4 codes are -8..7, one a byte here). scales, offsets: float32
    [N, G], values that bfloat16 holds exactly; offsets None when the format is symmetric. G groups
    of K / G inputs; a single scale of a whole matrix is repeated for each channel. `offsets` is
    the weight of code 0: exactly the (q - 8) * scale + zero of PyTorch's int4 kernels, q = code + 8
    and zero = offset, without another rounding.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    format: WeightFormat

    @property
    def shape(self) -> tuple[int, int]:
        """(N output channels, K inputs)."""
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[N, K] weights that the codes stand for, computed in float32, then rounded to `dtype`."""
        return weight_of(self.codes, self.scales, self.offsets, torch.float32).to(dtype)


def quantize(weight: torch.Tensor, format: WeightFormat) -> Quantized:
    """Round [N, K] `weight` to the nearest point of the grid of each group.

    |w - dequantized| is at most half a scale, plus what rounding scale and offset to bfloat16
    moves the ends of the grid: up to 2**-8 of the group's largest magnitude. A group of equal
    weights is exact as far as bfloat16 holds its value. Raises UserError for inf, NaN, magnitudes
    whose grid would overflow, and inputs that do not divide into groups.
    """
    if weight.ndim != 2 or not weight.numel():
        raise UserError(f"a weight matrix is [N, K] and not empty, not {list(weight.shape)}")
    values = weight.detach().float()
    largest = values.abs().max().item()
    if not largest <= LARGEST_WEIGHT:  # also catches NaN
        raise UserError("cannot quantize weights with inf, NaN or magnitudes of 1e38: check them")
    groups = values.unflatten(1, (format.num_groups(weight.shape[1]), -1))
    low, high = _extremes(groups, format)
    scales, offsets = _grid(low, high, format)
    codes = encode(values, scales, offsets, format)
    return Quantized(codes, scales, offsets, format)


def encode(
    weight: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    format: WeightFormat,
) -> torch.Tensor:
    """Nearest codes, int8 [N, K], of [N, K] weights on a given grid, scales and offsets [N, G]."""
    groups = weight.float().unflatten(1, (scales.shape[1], -1))
    if offsets is not None:
        groups = groups - offsets[..., None]
    steps = scales[..., None]
    codes = torch.where(steps > 0, groups / steps, torch.zeros_like(groups))
    return codes.round().clamp(*format.code_range).flatten(1).to(torch.int8)


def pairs_fit(format: WeightFormat, in_features: int) -> bool:
    """Whether codes of `format` can lie two a byte."""
    return format.bits <= 4 and in_features % 2 == 0


def pair_codes(codes: torch.Tensor) -> torch.Tensor:
    """Codes -8..7 [N, K] -> uint8 [N, K / 2]: code + 8, the even input in the lower half."""
    unsigned = (codes + 8).to(torch.uint8)
    return unsigned[:, ::2] | (unsigned[:, 1::2] << 4)


def unpair_codes(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of `pair_codes`: int8 codes [N, K]."""
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1).to(torch.int8) - 8


def quantization_error(weight: torch.Tensor, quantized: Quantized) -> dict[str, float]:
    """How far the grid moved the weights.

    relative_error_ratio: Frobenius norm of the error over that of the weights; snr_db: the same
    as 20 log10 of the inverse (inf when exact); largest_error: of a single weight.
    """
    reference = weight.detach().double()
    error = reference - quantized.dequantize().double()
    size, moved = reference.norm().item(), error.norm().item()
    ratio = moved / size if size else (math.inf if moved else 0.0)
    return {
        "relative_error_ratio": ratio,
        "snr_db": -20 * math.log10(ratio) if ratio else math.inf,
        "largest_error": error.abs().max().item(),
    }


def _extremes(groups: torch.Tensor, format: WeightFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, G] smallest and largest weight of each group [N, G, size]."""
    low, high = groups.amin(-1), groups.amax(-1)
    if format.group_size == 0:
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    return low, high


def _grid(
    low: torch.Tensor, high: torch.Tensor, format: WeightFormat
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and offsets [N, G], rounded to bfloat16, whose codes span [low, high]."""
    first, last = format.code_range
    if format.symmetric:
        largest = torch.maximum(low.abs(), high.abs())
        # Equal weights take code 1 or -1: exact, if bfloat16 holds their value as a scale.
        exact = (low == high) & (_bfloat16(largest) == largest)
        return _bfloat16(torch.where(exact, largest, largest / last)), None
    scales = _bfloat16((high - low) / (last - first))
    offsets = _bfloat16(low + (high - low) * (-first / (last - first)))
    return scales, offsets


def _bfloat16(values: torch.Tensor) -> torch.Tensor:
    """Nearest bfloat16 numbers, held in float32; those too small to keep their digits become 0."""
    rounded = values.to(torch.bfloat16).float()
    return torch.where(rounded.abs() < SMALLEST_SCALE, torch.zeros_like(rounded), rounded)
