"""How does a layer multiply codes of 8 bits by codes of 8 bits, activations included?

y = (codes of x) (codes of W)^T, scaled by row and by channel. The product is the machine's own:
oneDNN on a CPU (AVX-512 VNNI, whole numbers), `torch._int_mm` and `torch._scaled_mm` on a GPU. What
is ours is the rounding of the activations, in one pass (fused) or as a chain of operations.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from inferlab import kernels
from inferlab.errors import UserError
from inferlab.quant.activations import CODE_RANGES, quantize_rows, static_scale
from inferlab.quant.formats import WeightFormat, get_format
from inferlab.quant.grid import Quantized, quantize
from inferlab.quant.linear import LowBitLinear

ZERO_POINT = 128  # of unsigned codes, which oneDNN's fast kernel takes: code + 128
INT_MM_ROWS = 32  # torch._int_mm on a GPU takes more than 16 rows: fewer are filled up
FP8_CAPABILITY = (8, 9)
FP8 = torch.float8_e4m3fn


class W8A8Linear(LowBitLinear):
    """int8 weights, one scale per channel, and int8 activations, scaled per row or once for all.

    mode: "dynamic", each row by its own largest magnitude; "static", by `input_absmax`, which
    calibration found: larger inputs are cut off. fused: activations are rounded in as few passes
    as the device allows; otherwise operation by operation. The numbers are the same.
    """

    def __init__(
        self,
        quantized: Quantized,
        bias: torch.Tensor | None = None,
        mode: str = "dynamic",
        input_absmax: float | None = None,
        fused: bool = True,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        if quantized.format != get_format("int8"):
            raise UserError(f"W8A8 takes weights in int8, not {quantized.format.name}")
        if mode not in ("dynamic", "static"):
            raise UserError(f"unknown mode {str(mode)[:40]!r}; known: dynamic, static")
        if mode == "static" and input_absmax is None:
            raise UserError("static scales need input_absmax, the largest input in calibration")
        super().__init__(quantized.shape, bias, quantized.format, dtype, device)
        self.mode, self.fused = mode, fused
        self.input_scale = static_scale(input_absmax) if mode == "static" else None
        on_cpu = torch.device(device).type == "cpu"
        self.product = (_OneDnnProduct if on_cpu else _IntMmProduct)(quantized, dtype, device)

    @classmethod
    def from_weight(
        cls, weight: torch.Tensor, bias: torch.Tensor | None = None, **options
    ) -> W8A8Linear:
        """Round [N, K] weights to int8 per channel; `options` as above."""
        return cls(quantize(weight, get_format("int8")), bias, **options)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        return self.product(x, self.input_scale, self.fused)


class _OneDnnProduct(nn.Module):
    """Unsigned by signed codes in oneDNN, the weights packed once; exact sums in int32."""

    def __init__(self, quantized: Quantized, dtype: torch.dtype, device) -> None:
        super().__init__()
        if not hasattr(torch.ops.onednn, "qlinear_prepack"):
            raise UserError("W8A8 on a CPU needs a torch with oneDNN (x86): use format int8")
        _announce_quantizer()
        self.dtype = dtype
        self.packed = torch.ops.onednn.qlinear_prepack(quantized.codes.contiguous(), None)
        self.register_buffer("scales", quantized.scales[:, 0].contiguous())

    def forward(self, x: torch.Tensor, scale: float | None, fused: bool) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        if fused and scale is None and x.shape[0] == 1:
            scale = _row_scale(x)  # one row, one number: the product can apply it
        if scale is not None:
            codes = _unsigned(x, scale) if fused else _shifted(x, scale)[0]
            return self._multiply(codes, scale, self.dtype)
        if fused:
            values = x.float()
            top = values.abs().amax(-1, keepdim=True).clamp_min_(1e-30)
            codes, scales = _unsigned(values * (top.reciprocal() * 127), 1.0), top / 127
        else:
            codes, scales = _shifted(x, None)
        return self._multiply(codes, 1.0, torch.float32).mul_(scales).to(self.dtype)

    def _multiply(self, codes: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            codes, scale, ZERO_POINT, self.packed, self.scales, None, None, 1.0, 0, dtype, "none",
            [], "",
        )  # fmt: skip


def _row_scale(x: torch.Tensor) -> float:
    low, high = torch.aminmax(x)
    return max(-low.item(), high.item(), 1e-30) / 127


def _unsigned(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Codes + 128 as uint8: scaled, rounded, cut off, shifted and narrowed in one pass."""
    return torch.quantize_per_tensor(x.float(), scale, ZERO_POINT, torch.quint8).int_repr()


def _shifted(x: torch.Tensor, scale: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = quantize_rows(x, torch.int8, scale)
    return (codes.to(torch.int16) + ZERO_POINT).to(torch.uint8), scales


@functools.cache
def _announce_quantizer() -> None:
    """torch 2.13 warns once that quantize_per_tensor will go; nothing else rounds in one pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, ZERO_POINT, torch.quint8)


class _IntMmProduct(nn.Module):
    """Signed codes by signed codes in `torch._int_mm`; scales follow in one pass, or in three."""

    def __init__(self, quantized: Quantized, dtype: torch.dtype, device) -> None:
        super().__init__()
        channels, inputs = quantized.shape
        if channels % 8 or inputs % 8:
            raise UserError(
                f"W8A8 on a GPU needs K and N in multiples of 8, not {inputs} and {channels}: "
                "keep this layer unquantized (keep=...)"
            )
        self.dtype = dtype
        self.register_buffer("codes", quantized.codes.to(device).contiguous())
        self.register_buffer("scales", quantized.scales[:, 0].to(device))
        self._input_scale: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, scale: float | None, fused: bool) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        rows = x.shape[0]
        codes, scales = _rounding(fused, x.device)(x, torch.int8, self._on_device(scale))
        if rows <= 16:
            codes = F.pad(codes, (0, 0, 0, INT_MM_ROWS - rows))
        sums = torch._int_mm(codes, self.codes.t())[:rows]
        if fused:
            from inferlab.kernels.quantize_rows import scale_product

            return scale_product(sums, scales, self.scales, self.dtype)
        return (sums.float() * scales * self.scales).to(self.dtype)

    def _on_device(self, scale: float | None) -> torch.Tensor | None:
        """The static scale as a tensor that stays: a captured CUDA graph keeps its address."""
        if scale is not None and self._input_scale is None:
            self._input_scale = torch.full((1,), scale, device=self.codes.device)
        return self._input_scale


class FP8Linear(LowBitLinear):
    """Weights and activations in E4M3 floats of 8 bits, multiplied by the GPU's FP8 units.

    scaling: "tensor", one scale for the weights and one for the activations of a call; "row", one
    per output channel and one per token. emulated: rounded to E4M3, then multiplied in `dtype`, for
    quality alone; the only way on a CPU, and never on a GPU. None: emulated on a CPU.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        scaling: str = "row",
        emulated: bool | None = None,
        fused: bool = True,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        if scaling not in ("tensor", "row"):
            raise UserError(f"unknown scaling {str(scaling)[:40]!r}; known: tensor, row")
        per_row = scaling == "row"
        format = WeightFormat(f"fp8-{scaling}", 8, None if per_row else 0, True)
        super().__init__(weight.shape, bias, format, dtype, device)
        self.emulated = torch.device(device).type == "cpu" if emulated is None else emulated
        self.per_row, self.fused = per_row, fused
        if not torch.isfinite(weight).all():
            raise UserError("cannot quantize weights with inf or NaN: check them")
        if not self.emulated:
            _need_fp8(weight.shape, dtype, device)
        rows = weight.detach().to(device)
        if not per_row:
            rows = rows.reshape(1, -1)
        codes, scales = quantize_rows(rows, FP8)
        codes = codes.view(weight.shape)
        self.register_buffer("codes", codes.to(dtype) if self.emulated else codes)
        self.register_buffer("scales", scales.view(1, -1))

    @classmethod
    def from_weight(
        cls, weight: torch.Tensor, bias: torch.Tensor | None = None, **options
    ) -> FP8Linear:
        """As the constructor: so that both layers are made alike."""
        return cls(weight, bias, **options)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        codes, scales = self._round(x)
        if self.emulated:
            return (F.linear(codes.to(self.dtype), self.codes).float() * scales * self.scales).to(
                self.dtype
            )
        return torch._scaled_mm(
            codes, self.codes.t(), scale_a=scales, scale_b=self.scales, out_dtype=self.dtype
        )

    def _round(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [M, K], and scales [M, 1] or, one for the whole call, [1, 1]."""
        rounding = _rounding(self.fused and not self.emulated, x.device)
        if self.per_row or x.shape[0] == 1:
            return rounding(x, FP8, None)
        top = x.abs().amax().float().clamp_min(1e-30)
        codes, scales = rounding(x, FP8, (top / CODE_RANGES[FP8][1]).reshape(1))
        return codes, scales.view(1, 1)


def _rounding(fused: bool, device: torch.device):
    """The function that rounds activations: the kernel, or the chain of operations."""
    if not fused:
        return quantize_rows
    if why := kernels.why_unavailable(device):
        raise UserError(f"{why}; or use fused=False")
    from inferlab.kernels import quantize_rows as kernel

    return kernel.quantize_rows


def _need_fp8(shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str) -> None:
    """UserError unless `device` multiplies E4M3 matrices of `shape` [N, K] into `dtype`."""
    kind = torch.device(device).type
    if kind != "cuda":
        raise UserError(f"{kind} has no FP8 units: use emulated=True, for quality only")
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise UserError("FP8 needs a GPU of compute capability 8.9 or newer: use W8A8 or int8")
    if shape[0] % 16 or shape[1] % 16:
        raise UserError(
            f"FP8 products need K and N in multiples of 16, not {shape[1]} and {shape[0]}: "
            "keep this layer unquantized (keep=...)"
        )
    if dtype != torch.bfloat16:
        raise UserError("FP8 products are written in bfloat16: use --dtype bfloat16")
