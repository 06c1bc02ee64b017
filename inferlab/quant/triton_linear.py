"""Which layers multiply by packed codes with our own GPU kernels?

The kernels are in `inferlab.kernels`; here are the modules that hold what they read. They multiply
in bfloat16 and run on a GPU, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1, for tests).
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import torch
from torch import nn

from inferlab import kernels
from inferlab.errors import UserError
from inferlab.kernels import reference
from inferlab.quant.grid import Quantized
from inferlab.quant.linear import QuantizedLinear


class TritonW4A16Linear(QuantizedLinear):
    """int4 codes in 32-bit words, and per group one word of scale and offset.

    Groups of 32, 64, multiples of 128, or a whole channel. K and N are free: a last block of 128
    inputs is filled up with zeros.
    """

    row_tile = 128

    def __init__(self, quantized: Quantized, bias=None, dtype=torch.bfloat16, device="cuda"):
        _need(dtype, device)
        super().__init__(quantized, bias, dtype, device)
        groups = quantized.scales.shape[1]
        self.group_size = self.in_features // groups if groups > 1 else 0
        if self.group_size not in (0, 32, 64) and self.group_size % reference.BLOCK:
            raise UserError(
                f"the int4 kernel takes groups of 32, 64 or multiples of 128 inputs, not "
                f"{self.group_size}: use a format with such groups, or kernel='naive'"
            )
        grids = reference.pack_grids(quantized.scales, quantized.offsets, self.group_size)
        self.register_buffer("words", reference.pack_int4(quantized.codes.to(device)))
        self.register_buffer("grids", grids.to(device))
        self.num_groups = groups

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        from inferlab.kernels import w4a16

        return w4a16.multiply(x, self.words, self.grids, self.group_size)

    def to_quantized(self) -> Quantized:
        """Codes unpacked."""
        codes = reference.unpack_int4(self.words, self.in_features).cpu()
        scales, offsets = reference.unpack_grids(self.grids.cpu(), self.num_groups)
        return Quantized(codes, scales, None if self.format.symmetric else offsets, self.format)


class TritonW8A16Linear(QuantizedLinear):
    """int8 codes in 32-bit words and one scale, perhaps one offset, per output channel."""

    row_tile = 128

    def __init__(self, quantized: Quantized, bias=None, dtype=torch.bfloat16, device="cuda"):
        _need(dtype, device)
        if quantized.format.bits != 8 or quantized.scales.shape[1] != 1:
            raise UserError(
                f"the int8 kernel takes 8 bits and one scale a channel, not "
                f"{quantized.format.name}: use int8, int8-asym or int8-tensor"
            )
        super().__init__(quantized, bias, dtype, device)
        self.register_buffer("words", reference.pack_int8(quantized.codes.to(device)))
        self.register_buffer("scales", quantized.scales[:, 0].contiguous().to(device))
        offsets = quantized.offsets
        self.register_buffer(
            "offsets", None if offsets is None else offsets[:, 0].contiguous().to(device)
        )

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        from inferlab.kernels import w8a16

        return w8a16.multiply(x, self.words, self.scales, self.offsets)

    def to_quantized(self) -> Quantized:
        """Codes unpacked."""
        codes = reference.unpack_int8(self.words, self.in_features).cpu()
        offsets = None if self.offsets is None else self.offsets[:, None].cpu()
        return Quantized(codes, self.scales[:, None].cpu(), offsets, self.format)


def make_linear(
    quantized: Quantized, bias: torch.Tensor | None, dtype: torch.dtype, device
) -> nn.Module:
    """The layer for 4 or for 8 bits; UserError where there is none for the format or device."""
    if quantized.format.bits == 4:
        return TritonW4A16Linear(quantized, bias, dtype, device)
    return TritonW8A16Linear(quantized, bias, dtype, device)


def _need(dtype: torch.dtype, device: torch.device | str) -> None:
    if why := kernels.why_unavailable(device):
        raise UserError(f"kernel triton cannot run on {device}: {why}")
    if dtype != torch.bfloat16:
        raise UserError("kernel triton multiplies in bfloat16: use --dtype bfloat16")
