"""How does a layer multiply by weights that are stored as codes?

Every module here is a drop-in for `models.layers.Projection`: [..., K] -> [..., N] in the dtype
of the input. PackedInt8Linear and PackedInt4Linear read the codes and nothing else, which is where
the speed comes from; DequantizingLinear writes the whole matrix out first, which is the trap;
RoundedLinear multiplies by the rounded weights at full width, to judge quality alone.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from torch import nn

from inferlab.errors import UserError
from inferlab.quant.formats import WeightFormat
from inferlab.quant.grid import Quantized, pair_codes, pairs_fit, unpair_codes

INT4_GROUPS = (256, 128, 64, 32)  # that PyTorch's packed int4 kernel takes
INT8_INPUTS = 16  # that PyTorch's packed int8 kernel loads at once: K must divide by it
INT4_CHANNELS = 16  # the packed int4 kernel's tile: N must divide by it
KERNELS = ("auto", "packed", "naive", "rounded", "triton", "torchao")


class LowBitLinear(nn.Module):
    """y = x W^T + b with W [N, K] in few bits; subclasses say how the product is done."""

    def __init__(
        self,
        shape: tuple[int, int],
        bias: torch.Tensor | None,
        format: WeightFormat,
        dtype: torch.dtype,
        device,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.format = format
        self.dtype = dtype
        self.register_buffer("bias", None if bias is None else bias.detach().to(device, dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N]."""
        # A decode step calls this for every product, so conversions that do nothing are left out.
        rows = x.reshape(-1, self.in_features)
        if rows.dtype != self.dtype:
            rows = rows.to(self.dtype)
        y = self.multiply(rows if rows.is_contiguous() else rows.contiguous())
        if self.bias is not None:
            y = y + self.bias
        y = y.view(*x.shape[:-1], self.out_features)
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N], without the bias."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Shape and format, for print(decoder)."""
        return f"{self.in_features}, {self.out_features}, {self.format.name}"


class QuantizedLinear(LowBitLinear):
    """A layer whose weights lie on a grid, and can be had back as codes.

    Scales and offsets are kept in the layer's dtype; bfloat16 holds them exactly. `row_tile`: rows
    that a kernel multiplies at once, where it unpacks the weights again for each such tile.
    """

    row_tile = 1

    def __init__(
        self, quantized: Quantized, bias: torch.Tensor | None, dtype: torch.dtype, device
    ) -> None:
        super().__init__(quantized.shape, bias, quantized.format, dtype, device)

    def to_quantized(self) -> Quantized:
        """The codes, scales and offsets that the layer was made of, on the CPU."""
        raise NotImplementedError

    def weight_bytes(self) -> int:
        """Bytes of memory that the layer's tensors take, padding and bias included."""
        return sum(buffer.numel() * buffer.itemsize for buffer in self.buffers())


class PackedInt8Linear(QuantizedLinear):
    """int8 codes, one scale per output channel or matrix: PyTorch's `_weight_int8pack_mm` (CPU).

    The kernel has no offsets; those of an asymmetric format come in as (sum of x) * offset. Its
    tile is that of PyTorch's int8mm_kernel.cpp.
    """

    row_tile = 4

    def __init__(self, quantized: Quantized, bias=None, dtype=torch.bfloat16, device="cpu"):
        format = quantized.format
        _need_cpu("packed", device)
        if format.bits != 8 or quantized.scales.shape[1] != 1:
            raise UserError(
                f"the packed int8 kernel takes 8 bits and one scale a channel, not {format.name}: "
                "use the packed int4 kernel for 4 bits, or kernel='naive'"
            )
        if quantized.shape[1] % INT8_INPUTS:  # the kernel would read past the end of a row
            raise UserError(
                f"the packed int8 kernel needs inputs in multiples of {INT8_INPUTS}, not "
                f"{quantized.shape[1]}: keep this layer unquantized (keep=...) or use "
                "kernel='naive'"
            )
        super().__init__(quantized, bias, dtype, device)
        self.register_buffer("codes", quantized.codes.to(device).contiguous())
        self.register_buffer("scales", quantized.scales[:, 0].to(device, dtype))
        offsets = quantized.offsets
        self.register_buffer("offsets", None if offsets is None else offsets[:, 0].to(device))

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        y = torch.ops.aten._weight_int8pack_mm(x, self.codes, self.scales)
        if self.offsets is not None:
            y = y + (x.float().sum(-1, keepdim=True) * self.offsets).to(y.dtype)
        return y

    def to_quantized(self) -> Quantized:
        """Codes as they are."""
        offsets = None if self.offsets is None else self.offsets[:, None]
        return Quantized(self.codes, self.scales.float()[:, None], offsets, self.format)


class PackedInt4Linear(QuantizedLinear):
    """int4 codes in the blocked layout of PyTorch's `_weight_int4pack_mm_for_cpu`.

    The kernel computes (q - 8) * scale + zero with q in 0..15: q = code + 8, zero = offset (0 when
    symmetric). Groups of 32, 64, 128 or 256; a scale per channel is repeated for the largest of
    them that divides K. N must divide by 16. Its tile is that of PyTorch's int4mm_kernel.cpp.
    """

    row_tile = 4

    def __init__(self, quantized: Quantized, bias=None, dtype=torch.bfloat16, device="cpu"):
        _need_cpu("packed", device)
        super().__init__(quantized, bias, dtype, device)
        self.group_size = _int4_group(quantized)
        tiled = (quantized.codes.to(device, torch.int32) + 8).contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(tiled, 1)
        self.register_buffer("codes", packed)
        offsets = quantized.offsets
        zeros = torch.zeros_like(quantized.scales) if offsets is None else offsets
        both = torch.stack((quantized.scales, zeros), dim=-1)  # [N, G, 2]
        self._repeats = self.in_features // self.group_size // both.shape[1]
        both = both.repeat_interleave(self._repeats, dim=1).transpose(0, 1).contiguous()
        self.register_buffer("scales_and_zeros", both.to(device, dtype))  # [K / group, N, 2]

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        return torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.codes, self.group_size, self.scales_and_zeros
        )

    def to_quantized(self) -> Quantized:
        """Codes read back by a product with the identity, scale 1 and zero 0: whole numbers.

        In bfloat16, which holds them exactly: the float32 kernel takes a hundred times as long.
        """
        unit = torch.zeros_like(self.scales_and_zeros, dtype=torch.bfloat16)
        unit[..., 0] = 1
        eye = torch.eye(self.in_features, dtype=torch.bfloat16)
        codes = torch.ops.aten._weight_int4pack_mm_for_cpu(eye, self.codes, self.group_size, unit)
        both = self.scales_and_zeros[:: self._repeats].transpose(0, 1).float()
        offsets = None if self.format.symmetric else both[..., 1].contiguous()
        codes = codes.round().to(torch.int8).t().contiguous()
        return Quantized(codes, both[..., 0].contiguous(), offsets, self.format)


class DequantizingLinear(QuantizedLinear):
    """Codes in memory, but every call writes the whole matrix in x.dtype and multiplies by it.

    Memory is saved, time is not: the matrix is written and read at full width on top of the codes.
    int4 codes lie two a byte.
    """

    def __init__(self, quantized: Quantized, bias=None, dtype=torch.bfloat16, device="cpu"):
        super().__init__(quantized, bias, dtype, device)
        codes = quantized.codes.to(device)
        self.paired = pairs_fit(self.format, self.in_features)
        self.register_buffer("codes", (pair_codes(codes) if self.paired else codes).contiguous())
        self.register_buffer("scales", quantized.scales.to(device, dtype))
        offsets = quantized.offsets
        self.register_buffer("offsets", None if offsets is None else offsets.to(device, dtype))

    def unpacked(self) -> torch.Tensor:
        """int8 codes [N, K]."""
        return unpair_codes(self.codes) if self.paired else self.codes

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        grouped = self.unpacked().unflatten(1, (self.scales.shape[1], -1)).to(x.dtype)
        weight = grouped * self.scales[..., None]
        if self.offsets is not None:
            weight = weight + self.offsets[..., None]
        return F.linear(x, weight.flatten(1))

    def to_quantized(self) -> Quantized:
        """Codes unpacked."""
        offsets = None if self.offsets is None else self.offsets.float().cpu()
        return Quantized(self.unpacked().cpu(), self.scales.float().cpu(), offsets, self.format)


class RoundedLinear(QuantizedLinear):
    """Multiplies by the rounded weights at full width: what quality costs, nothing about speed."""

    def __init__(self, quantized: Quantized, bias=None, dtype=torch.float32, device="cpu"):
        super().__init__(quantized, bias, dtype, device)
        self._quantized = quantized
        self.register_buffer("weight", quantized.dequantize(dtype).to(device))

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        return F.linear(x, self.weight)

    def to_quantized(self) -> Quantized:
        """What it was made of."""
        return self._quantized


def make_linear(
    quantized: Quantized,
    bias: torch.Tensor | None = None,
    kernel: str = "auto",
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A layer that multiplies by `quantized` with the kernel asked for.

    packed (CPU), naive and rounded are here; triton comes from `quant.triton_linear` and
    torchao from `quant.torchao_linear`, each with a function of these same arguments.
    auto: packed on a CPU, triton on a GPU. Raises UserError for a kernel that does not exist, that
    the device lacks or that does not take the format or shape.
    """
    if kernel not in KERNELS:
        raise UserError(f"unknown kernel {str(kernel)[:40]!r}; known: {', '.join(KERNELS)}")
    if kernel == "auto":
        kernel = "packed" if torch.device(device).type == "cpu" else "triton"
    if kernel == "naive":
        return DequantizingLinear(quantized, bias, dtype, device)
    if kernel == "rounded":
        return RoundedLinear(quantized, bias, dtype, device)
    if kernel == "packed":
        packed = PackedInt8Linear if quantized.format.bits == 8 else PackedInt4Linear
        return packed(quantized, bias, dtype, device)
    return _other_linear(kernel, quantized, bias, dtype, device)


def _other_linear(kernel: str, *arguments) -> nn.Module:
    """Kernels of their own modules, imported when asked for."""
    where = {"triton": "inferlab.quant.triton_linear", "torchao": "inferlab.quant.torchao_linear"}
    try:
        module = importlib.import_module(where[kernel])
    except ImportError as error:
        raise UserError(
            f"kernel {kernel} cannot be loaded here ({error}): use kernel='auto'"
        ) from (error)
    return module.make_linear(*arguments)


def _need_cpu(kernel: str, device: torch.device | str) -> None:
    if torch.device(device).type != "cpu":
        raise UserError(
            f"kernel {kernel} runs on a CPU only, not on {device}: use kernel='triton' or 'torchao'"
        )


def _int4_group(quantized: Quantized) -> int:
    """Group size that the packed int4 kernel is called with; UserError where it cannot be."""
    channels, inputs = quantized.shape
    if quantized.format.bits > 4:
        raise UserError(f"the packed int4 kernel takes 4 bits, not {quantized.format.name}")
    if channels % INT4_CHANNELS:
        raise UserError(
            f"the packed int4 kernel needs output channels in multiples of {INT4_CHANNELS}, "
            f"not {channels}: keep this layer unquantized (keep=...) or use kernel='naive'"
        )
    size = inputs // quantized.scales.shape[1]
    for group in INT4_GROUPS:
        if size == group or (size == inputs and size % group == 0):
            return group
    raise UserError(
        f"the packed int4 kernel takes groups of 32, 64, 128 or 256 inputs, not {size}: "
        "use a format with such groups, such as int4-g32, or kernel='naive'"
    )
