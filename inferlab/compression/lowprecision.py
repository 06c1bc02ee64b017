"""How does a decoder come to multiply in 8 bits, activations included?

W8A8 rounds the input of each product as well as its weights: per token when the token arrives
(dynamic), or with one scale fixed beforehand from calibration data (static). FP8 rounds to floats
of 8 bits. The head stays as it is, as serving systems leave it.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from inferlab.compression.observe import InputStats, observe
from inferlab.errors import UserError
from inferlab.models.cost import is_kept
from inferlab.models.decoder import Decoder
from inferlab.models.projections import (
    plain_weight,
    projections,
    replace_projections,
    replace_weights,
)
from inferlab.quant.formats import get_format
from inferlab.quant.linear8 import FP8Linear, W8A8Linear

KEEP = ("head",)
LINEARS = ("int8", "w8a8", "w8a8-unfused", "w8a8-static", "fp8-tensor", "fp8-row")


@torch.no_grad()
def replace_linears(
    decoder: Decoder,
    linear: str,
    calibration: torch.Tensor | None = None,
    *,
    stats: Mapping[str, InputStats] | None = None,
    keep: Sequence[str] = KEEP,
) -> Decoder:
    """Replace the projections of a plain decoder in place, but for those that `keep` names.

    w8a8-static needs `stats` of this decoder as it is now, or `calibration` token ids [n, T] to
    observe. All layers are made before the first is replaced. What stays is packed for oneDNN
    where that helps. UserError for an unknown name, for static scales without calibration, and as
    `observe` and the layers say.
    """
    if linear not in LINEARS:
        raise UserError(f"unknown linear {str(linear)[:40]!r}; known: {', '.join(LINEARS)}")
    if linear == "int8":
        return replace_weights(decoder, get_format("int8"), keep=keep)
    ranges = _ranges(decoder, calibration, stats) if linear == "w8a8-static" else {}
    made = {
        name: _make(linear, name, module, ranges, decoder)
        for name, module in projections(decoder)
        if not is_kept(name, keep)
    }
    return replace_projections(decoder, made)


def _ranges(
    decoder: Decoder, calibration: torch.Tensor | None, stats: Mapping[str, InputStats] | None
) -> dict[str, float]:
    """Largest magnitude of each projection's input."""
    if stats is None:
        if calibration is None:
            raise UserError("static scales need calibration data: give token ids or stats")
        stats = observe(decoder, calibration)
    return {name: float(found.absmax.max()) for name, found in stats.items()}


def _make(
    linear: str, name: str, module: nn.Module, ranges: Mapping[str, float], decoder: Decoder
) -> nn.Module:
    weight, place = plain_weight(name, module), {"dtype": decoder.dtype, "device": decoder.device}
    if linear.startswith("fp8"):
        return FP8Linear.from_weight(
            weight, module.bias, scaling=linear.removeprefix("fp8-"), **place
        )
    if linear == "w8a8-static":
        return W8A8Linear.from_weight(
            weight, module.bias, mode="static", input_absmax=ranges[name], **place
        )
    return W8A8Linear.from_weight(
        weight, module.bias, mode="dynamic", fused=linear == "w8a8", **place
    )
