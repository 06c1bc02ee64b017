"""The parts of a decoder that are not attention: projection, norm, rotary table."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from inferlab.models.config import ModelConfig


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """True where oneDNN can keep bfloat16 weights in its own blocked layout (an AVX-512 CPU)."""
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    wanted = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(ops, name) for name in wanted) and ops._is_mkldnn_bf16_supported()


class Projection(nn.Module):
    """y = x W^T + b with W [out, in], stored plainly or, on a CPU, packed once for oneDNN.

    A plain bfloat16 product with few rows reads W at about half the memory bandwidth, because
    oneDNN re-orders it at each call. Packing does that once; the result is the same bit by bit.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, **factory) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, **factory), requires_grad=False
        )
        self.bias = (
            nn.Parameter(torch.empty(out_features, **factory), requires_grad=False)
            if bias
            else None
        )
        self._packed: torch.Tensor | None = None

    def pack(self, *, keep_plain: bool = False) -> None:
        """Convert the weight to oneDNN's layout; the plain one goes unless `keep_plain`."""
        weight = self.weight.detach().contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        if not keep_plain:
            self.weight = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        if self._packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise.default(
            x, self._packed, self.bias, "none", [], ""
        )


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; the mean of squares is taken in float32."""

    def __init__(self, size: int, eps: float, **factory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, **factory), requires_grad=False)
        self.shape = (size,)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return F.rms_norm(x, self.shape, self.weight, self.eps)


def rope_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> torch.Tensor:
    """[D / 2] angle per position of each pair of dimensions, float32, with Llama 3's scaling.

    Sources: Su et al., "RoFormer", 2021; Llama 3.1's reference code for the scaling.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float()
    frequencies = 1.0 / (config.rope_theta ** (exponents / config.head_dim))
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    ratio = scaling.original_max_context_len / wavelengths
    span = scaling.high_freq_factor - scaling.low_freq_factor
    # 0: long waves, slowed by the whole factor; 1: short waves, kept; between: a smooth mix.
    keep = ((ratio - scaling.low_freq_factor) / span).clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def rope_table(
    config: ModelConfig, length: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """[length, 2 D]: cosines, then sines whose first half is negated (see `apply_rope`)."""
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, rope_frequencies(config, device))
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat((cosines, cosines, -sines, sines), dim=-1).to(dtype)


def apply_rope(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate [B, T, heads, D] by angles [B or 1, T, 1, D].

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin): a roll by D / 2 and a signed sine do it in
    three operations instead of six.
    """
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, -1), sines)
