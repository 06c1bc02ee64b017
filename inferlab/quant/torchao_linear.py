"""How does torchao, the field's own library, multiply by the same low-bit weights?

A peer for speed. int8 takes our codes and scales as they are; int4 goes through torchao's packing,
which rounds the dequantized weights to its own grid of the same groups: nearly always the same one.
Source: torchao 0.18, Int8Tensor, Int4OpaqueTensor (CPU) and Int4TilePackedTo4dTensor (CUDA).
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F
from torch import nn

from inferlab.errors import UserError
from inferlab.quant.formats import WeightFormat
from inferlab.quant.grid import Quantized
from inferlab.quant.linear import QuantizedLinear


class TorchaoLinear(QuantizedLinear):
    """A product whose weight is one of torchao's tensors; `F.linear` finds its kernel."""

    def __init__(self, quantized: Quantized, bias=None, dtype=torch.bfloat16, device="cpu"):
        super().__init__(quantized, bias, dtype, device)
        if dtype != torch.bfloat16:
            raise UserError("torchao's int kernels take bfloat16 activations: use --dtype bfloat16")
        self._quantized = quantized
        plain = quantized.dequantize(dtype).to(device)
        try:
            with _quiet():
                weight = _convert(plain, quantized.format)
        except ImportError as error:
            raise UserError(f"kernel torchao needs torchao ({error}): pip install it") from error
        if quantized.format.bits == 8:
            weight.qdata.copy_(quantized.codes)
            weight.scale.copy_(quantized.scales.view_as(weight.scale))
        self.weight = nn.Parameter(weight, requires_grad=False)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        return F.linear(x, self.weight)

    def weight_bytes(self) -> int:
        """Bytes of the format: torchao's tensors do not tell theirs."""
        return round(self.format.matrix_bytes(self.out_features, self.in_features))

    def to_quantized(self) -> Quantized:
        """What it was made of."""
        return self._quantized


def make_linear(
    quantized: Quantized, bias: torch.Tensor | None, dtype: torch.dtype, device
) -> nn.Module:
    """A TorchaoLinear; UserError where torchao has no kernel for the format or the device."""
    return TorchaoLinear(quantized, bias, dtype, device)


def _convert(plain: torch.Tensor, format: WeightFormat) -> torch.Tensor:
    """torchao's tensor of [N, K] weights in the format nearest to `format`."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    if format.bits == 8 and format.group_size is None and format.symmetric:
        config = Int8WeightOnlyConfig(set_inductor_config=False)
    elif format.bits == 4 and format.group_size and not format.symmetric:
        if plain.device.type == "cpu":
            from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor

            return Int4OpaqueTensor.from_hp(plain, [1, format.group_size])
        config = Int4WeightOnlyConfig(
            group_size=format.group_size,
            set_inductor_config=False,
            int4_packing_format="tile_packed_to_4d",
        )
    else:
        raise UserError(
            f"torchao has no kernel for {format.name} here: use int8, int4-g32, int4-g64 or "
            "int4-g128, or kernel='auto'"
        )
    holder = nn.Linear(plain.shape[1], plain.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(plain, requires_grad=False)
    quantize_(holder, config)
    return holder.weight


def preload() -> None:
    """Import torchao, where it is installed, without its remarks: transformers does so aloud."""
    with _quiet(), suppress(ImportError):
        import torchao.prototype.mx_formats
        import torchao.quantization  # noqa: F401


@contextmanager
def _quiet() -> Iterator[None]:
    """torchao warns at import of compiled parts for other Pythons, which nothing here uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
