"""How does a whole decoder become a quantized one, by each of the methods?

rtn rounds every weight to nearest. awq first scales the channels that matter (it needs inputs),
then rounds. gptq rounds each column and lets the next ones make up for it (it needs second
moments). The head is rounded too: to nearest with awq, as any other layer with gptq.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from inferlab.compression.blocks import checked_tokens, embed, run_block
from inferlab.compression.fold import fold_scales, shared_by_heads
from inferlab.compression.observe import (
    InputRecorder,
    InputStats,
    check_enough,
    observe,
    token_batches,
    watched,
)
from inferlab.errors import UserError
from inferlab.models.decoder import Decoder
from inferlab.models.projections import (
    PARTS,
    plain_weight,
    projections,
    quantizable,
    replace_projection,
    replace_weights,
)
from inferlab.quant.awq import search_scales
from inferlab.quant.formats import WeightFormat, get_format
from inferlab.quant.gptq import quantize_gptq
from inferlab.quant.grid import Quantized, quantize
from inferlab.quant.linear import RoundedLinear, make_linear
from inferlab.quant.smooth import migration_scales

METHODS = ("rtn", "awq", "gptq")
SMOOTHED = ("attention.qkv", "mlp.gate_up")  # fed by a norm, as in the paper
Stats = Mapping[str, InputStats]


@torch.no_grad()
def quantize_decoder(
    decoder: Decoder,
    format: WeightFormat | str,
    method: str = "rtn",
    stats: Stats | None = None,
    kernel: str = "auto",
    keep: Sequence[str] = (),
    *,
    token_ids: torch.Tensor | None = None,
    damping: float = 0.01,
    steps: int = 20,
) -> Decoder:
    """Quantize the projections of `decoder` in place, but for those that `keep` names; returns it.

    awq needs `stats` of this decoder, or `token_ids` [n, T] to observe. gptq with `token_ids`
    takes the layers in order and shows each the inputs that the already rounded layers produce
    (two passes a layer, one layer's Hessians in memory at a time); with `stats` (hessians=True) it
    uses the inputs of the unquantized decoder instead. When anything is refused, the decoder still
    computes what it did. UserError as `replace_weights`, `observe` and the methods say.
    """
    format = get_format(format) if isinstance(format, str) else format
    if method not in METHODS:
        raise UserError(f"unknown method {str(method)[:40]!r}; known: {', '.join(METHODS)}")
    if method == "rtn":
        return replace_weights(decoder, format, kernel, keep)
    if stats is None and token_ids is None:
        raise UserError(f"{method} needs calibration data: give stats=observe(...) or token_ids")
    chosen = [name for name, _ in quantizable(decoder, format, keep)]
    _rehearse(decoder, format, kernel, chosen)
    if method == "awq":
        stats = observe(decoder, token_ids) if stats is None else stats
        scale_for_awq(decoder, format, stats, keep, steps)
        return replace_weights(decoder, format, kernel, keep)
    if token_ids is not None:
        rounded = sequential_gptq(decoder, format, chosen, token_ids, damping)
    else:
        rounded = {
            name: quantize_gptq(
                plain_weight(name, decoder.get_submodule(name)),
                _hessian(stats, name),
                format,
                damping,
            )
            for name in chosen
        }
    return replace_weights(decoder, format, kernel, keep, lambda name, *_: rounded[name])


@torch.no_grad()
def scale_for_awq(
    decoder: Decoder,
    format: WeightFormat,
    stats: Stats,
    keep: Sequence[str] = (),
    steps: int = 20,
) -> dict[str, float]:
    """Fold each projection's best AWQ scales into what feeds it; returns the alphas by name.

    The decoder's function stays. The output error that is searched is each product's own (the
    authors take the attention block's for qkv). `out` shares scales over the query heads of a
    value head; the head is left unscaled (the authors do not even round it).
    """
    alphas = {}
    for name, module in reversed(quantizable(decoder, format, keep)):  # see `fold_scales`
        if name == "head":
            continue
        found = _stats_of(stats, name)
        importance = found.mean_abs
        if name.endswith("attention.out"):
            importance = shared_by_heads(decoder.config, importance)
        weight = plain_weight(name, module)
        best = search_scales(weight, found.sample, format, steps, importance)
        fold_scales(decoder, name, best.scales)
        alphas[name] = best.alpha
    return alphas


@torch.no_grad()
def sequential_gptq(
    decoder: Decoder,
    format: WeightFormat,
    names: Sequence[str],
    token_ids: torch.Tensor,
    damping: float = 0.01,
) -> dict[str, Quantized]:
    """GPTQ of the named projections, layer by layer; the decoder is as before afterwards.

    The four products of a layer see the inputs that the quantized layers before it produce; among
    each other they see unquantized ones, as in the authors' code.
    """
    token_ids = checked_tokens(decoder, token_ids)
    check_enough(decoder, token_ids, hessians=True)
    originals = dict(projections(decoder))
    rounded: dict[str, Quantized] = {}

    def round_one(name: str, recorder: InputRecorder) -> None:
        if name not in names:
            return
        module = originals[name]
        weight = plain_weight(name, module)
        rounded[name] = quantize_gptq(weight, recorder.stats().hessian, format, damping)
        layer = RoundedLinear(rounded[name], module.bias, decoder.dtype, decoder.device)
        replace_projection(decoder, name, layer)

    try:
        batches = [embed(decoder, windows) for windows in token_batches(token_ids)]
        for index, layer in enumerate(decoder.layers):
            layer_names = [f"layers.{index}.{part}" for part in PARTS]
            recorders = [InputRecorder(name, 0, 0, hessian=True) for name in layer_names]
            with watched(layer, recorders):
                for x in batches:
                    run_block(decoder, index, x)
            for name, recorder in zip(layer_names, recorders, strict=True):
                round_one(name, recorder)
            batches = [run_block(decoder, index, x) for x in batches]
        head = InputRecorder("head", 0, 0, hessian=True)
        for x in batches:
            head.add(decoder.norm(x))
        round_one("head", head)
    finally:
        for name, module in originals.items():
            replace_projection(decoder, name, module)
    return rounded


@torch.no_grad()
def smooth_decoder(
    decoder: Decoder, stats: Stats, alpha: float = 0.5, parts: Sequence[str] = SMOOTHED
) -> Decoder:
    """Migrate activation outliers into the weights of `parts`, in place; the function stays.

    `stats` are those of this decoder as it is now: smooth once, then observe again. "mlp.down" and
    "attention.out" are possible too, folded into `up` and `v`. UserError for a part of another
    name, alpha outside 0 to 1, and stats of another decoder.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"{str(part)[:40]!r} cannot be smoothed; known: {', '.join(PARTS)}")
    for index in range(len(decoder.layers)):
        for part in sorted(parts, key=PARTS.index, reverse=True):  # see `fold_scales`
            name = f"layers.{index}.{part}"
            weight = plain_weight(name, decoder.get_submodule(name))
            found = _stats_of(stats, name).absmax
            scales = migration_scales(found, weight.float().abs().amax(0), alpha)
            if part == "attention.out":
                scales = shared_by_heads(decoder.config, scales)
            fold_scales(decoder, name, scales)
    return decoder


def _rehearse(decoder: Decoder, format: WeightFormat, kernel: str, names: Sequence[str]) -> None:
    """Round one projection of each shape to nearest, so that what must fail fails at once."""
    seen = set()
    for name in names:
        weight = plain_weight(name, decoder.get_submodule(name))
        if weight.shape not in seen:
            seen.add(weight.shape)
            make_linear(quantize(weight, format), None, kernel, decoder.dtype, decoder.device)


def _stats_of(stats: Stats, name: str) -> InputStats:
    if name not in stats:
        raise UserError(f"the stats lack {name}: observe this decoder")
    return stats[name]


def _hessian(stats: Stats, name: str) -> torch.Tensor:
    hessian = _stats_of(stats, name).hessian
    if hessian is None:
        raise UserError("gptq needs second moments: observe(..., hessians=True)")
    return hessian
