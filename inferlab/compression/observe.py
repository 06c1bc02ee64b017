"""What goes into each product with weights when a decoder reads a text?

Calibration: the ranges of the input channels (SmoothQuant, static activation scales), their mean
magnitude and some rows of them (AWQ), and their second moments (GPTQ).
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from inferlab.compression.blocks import checked_tokens, embed, run_block
from inferlab.errors import UserError
from inferlab.models.decoder import Decoder
from inferlab.models.projections import PARTS, projections

MIN_TOKENS = 128  # below it, a channel's mean magnitude is a guess
TOKENS_AT_ONCE = 2048  # through one layer: bounds the memory of its activations


@dataclass(frozen=True, slots=True)
class InputStats:
    """What one projection's input [tokens, K] looked like; float32 on the decoder's device."""

    absmax: torch.Tensor  # [K] largest magnitude
    mean_abs: torch.Tensor  # [K]
    sample: torch.Tensor  # [m, K] rows at random places
    hessian: torch.Tensor | None  # [K, K] X^T X / tokens, where asked for
    num_tokens: int


class InputRecorder:
    """Gathers the InputStats of one projection over several calls."""

    def __init__(self, name: str, num_tokens: int, sample_size: int, hessian: bool) -> None:
        self.name, self.want_hessian = name, hessian
        self.seen = 0
        self.absmax = self.sum_abs = self.hessian = None
        generator = torch.Generator().manual_seed(0)
        places = torch.randperm(num_tokens, generator=generator)[:sample_size]
        self.places = places.sort().values  # of the sampled rows, in all tokens
        self.rows: list[torch.Tensor] = []

    def add(self, inputs: torch.Tensor) -> None:
        """Count in [..., K]; a UserError when it holds inf or NaN."""
        x = inputs.detach().flatten(0, -2).float()
        magnitudes = x.abs()
        largest = magnitudes.amax(0)
        if not torch.isfinite(largest).all():
            raise UserError(
                f"the input of {self.name} holds inf or NaN: check the weights, or calibrate in "
                "bfloat16 or float32"
            )
        first = self.absmax is None
        self.absmax = largest if first else torch.maximum(self.absmax, largest)
        total = magnitudes.sum(0)
        self.sum_abs = total if first else self.sum_abs + total
        if self.want_hessian:
            square = x.t() @ x
            self.hessian = square if first else self.hessian.add_(square)
        inside = (self.places >= self.seen) & (self.places < self.seen + len(x))
        self.rows.append(x[(self.places[inside] - self.seen).to(x.device)])
        self.seen += len(x)

    def stats(self) -> InputStats:
        """What was gathered so far."""
        hessian = self.hessian / self.seen if self.want_hessian else None
        return InputStats(
            self.absmax, self.sum_abs / self.seen, torch.cat(self.rows), hessian, self.seen
        )


@torch.no_grad()
def observe(
    decoder: Decoder,
    token_ids: torch.Tensor,
    *,
    hessians: bool = False,
    sample_size: int = 256,
) -> dict[str, InputStats]:
    """Stats of every projection's input over `token_ids` [n, T], by name ("layers.0.mlp.down").

    The head's product itself is left out. Hessians take 4 K^2 bytes a projection, and need at
    least K tokens to have full rank. UserError for fewer than MIN_TOKENS tokens (or K), for token
    ids of another vocabulary, and where an input holds inf or NaN.
    """
    token_ids = checked_tokens(decoder, token_ids)
    check_enough(decoder, token_ids, hessians)
    recorders = {
        name: InputRecorder(name, token_ids.numel(), sample_size, hessians)
        for name, _ in projections(decoder)
    }
    for windows in token_batches(token_ids):
        x = embed(decoder, windows)
        for index, layer in enumerate(decoder.layers):
            names = [f"layers.{index}.{part}" for part in PARTS]
            with watched(layer, [recorders[name] for name in names]):
                x = run_block(decoder, index, x)
        recorders["head"].add(decoder.norm(x))
    return {name: recorder.stats() for name, recorder in recorders.items()}


@contextmanager
def watched(layer: nn.Module, recorders: Sequence[InputRecorder]) -> Iterator[None]:
    """Let each recorder see the inputs of one part of `layer`, in the order of PARTS."""
    handles = [
        layer.get_submodule(part).register_forward_pre_hook(
            lambda _module, inputs, recorder=recorder: recorder.add(inputs[0])
        )
        for part, recorder in zip(PARTS, recorders, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_batches(token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[n, T] in pieces of at most TOKENS_AT_ONCE tokens (one window at least)."""
    return token_ids.split(max(1, TOKENS_AT_ONCE // token_ids.shape[1]))


def check_enough(decoder: Decoder, token_ids: torch.Tensor, hessians: bool) -> None:
    """Refuse a text too short to say anything about every channel."""
    given, needed, why = token_ids.numel(), MIN_TOKENS, "for a steady mean"
    if hessians:
        widest = max(module.in_features for _, module in projections(decoder))
        needed = max(MIN_TOKENS, widest)
        why = f"for second moments of {widest} channels"
    if given < needed:
        raise UserError(f"{given} calibration tokens are too few: give at least {needed} {why}")
