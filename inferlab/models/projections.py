"""Which products with weights does a decoder do, and how is one of them replaced?

Names are those of `Decoder.named_modules`: "layers.0.attention.qkv", ..., "head".
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from inferlab.errors import UserError
from inferlab.models.cost import is_kept
from inferlab.models.decoder import Decoder
from inferlab.models.layers import Projection
from inferlab.quant.formats import WeightFormat
from inferlab.quant.grid import Quantized, quantize
from inferlab.quant.linear import make_linear

PARTS = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")  # of a layer, in order
Quantizer = Callable[[str, torch.Tensor, WeightFormat], Quantized]


def projections(decoder: Decoder) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every product with weights, quantized or not, in the order of a step."""
    for index in range(len(decoder.layers)):
        for part in PARTS:
            name = f"layers.{index}.{part}"
            yield name, decoder.get_submodule(name)
    yield "head", decoder.head


def weights_of(decoder: Decoder) -> tuple[WeightFormat | None, tuple[str, ...]]:
    """(format of the quantized projections, names of those that are not); (None, ()) if none is.

    Raises UserError when the decoder mixes formats: no single one describes it.
    """
    found = {name: getattr(module, "format", None) for name, module in projections(decoder)}
    formats = {format for format in found.values() if isinstance(format, WeightFormat)}
    if not formats:
        return None, ()
    if len(formats) > 1:
        names = ", ".join(sorted(format.name for format in formats))
        raise UserError(f"the decoder mixes the weight formats {names}: use one and keep=...")
    return formats.pop(), tuple(name for name, format in found.items() if format is None)


def replace_projection(decoder: Decoder, name: str, module: nn.Module) -> None:
    """Put `module` in the place of projection `name`.

    Replacing the head of a tied model unties it: the embedding keeps its plain rows.
    """
    parent, _, child = name.rpartition(".")
    setattr(decoder.get_submodule(parent), child, module)


def replace_projections(decoder: Decoder, made: Mapping[str, nn.Module]) -> Decoder:
    """Put all of `made` in place, by name, pack what stays plain where that helps; the decoder."""
    for name, module in made.items():
        replace_projection(decoder, name, module)
    decoder.pack()
    return decoder


def plain_weight(name: str, module: nn.Module) -> torch.Tensor:
    """The [N, K] weight of an unpacked Projection; a UserError that says how to get one."""
    if not isinstance(module, Projection):
        raise UserError(f"{name} is already quantized: load the decoder again")
    if module.weight is None:
        raise UserError(
            f"{name} was packed for oneDNN and its plain weights are gone: load with pack=False"
        )
    return module.weight


def replace_weights(
    decoder: Decoder,
    format: WeightFormat,
    kernel: str = "auto",
    keep: Sequence[str] = (),
    quantizer: Quantizer | None = None,
) -> Decoder:
    """Quantize the decoder's projections in place, one after the other, and return it.

    `keep` names what stays as it is: whole names, or their ends or beginnings ("head", "mlp.down",
    "layers.0"). `quantizer(name, weight, format)` rounds a weight, to nearest by default. What
    stays is packed for oneDNN afterwards where that helps. All layers are made before the first is
    replaced: when one cannot be, the decoder is as it was.
    """
    quantizer = quantizer or (lambda _name, weight, format: quantize(weight, format))
    chosen = quantizable(decoder, format, keep)
    made: dict[str, nn.Module] = {}
    for name, module in chosen:
        quantized = quantizer(name, plain_weight(name, module), format)
        made[name] = make_linear(quantized, module.bias, kernel, decoder.dtype, decoder.device)
    return replace_projections(decoder, made)


def quantizable(
    decoder: Decoder, format: WeightFormat, keep: Sequence[str] = ()
) -> list[tuple[str, nn.Module]]:
    """(name, module) of the projections that `keep` does not name.

    UserError for a word that names none, and unless each has plain weights that `format` divides.
    """
    found = list(projections(decoder))
    for word in keep:
        if not any(is_kept(name, (word,)) for name, _ in found):
            raise UserError(f"keep={str(word)[:40]!r} names no projection; known: {_known()}")
    chosen = [(name, module) for name, module in found if not is_kept(name, keep)]
    for name, module in chosen:
        format.num_groups(plain_weight(name, module).shape[1])
    return chosen


def _known() -> str:
    return f"head, layers.0, {', '.join(PARTS)}, or a whole name such as layers.0.mlp.down"
