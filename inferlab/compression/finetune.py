"""How much of what rounding cost can training with rounded weights win back?

Quantization-aware fine-tuning: the forward pass uses the rounded weights, the gradient passes
through the rounding as if it were not there (straight-through), and moves full-precision master
weights. Where a master weight crosses the middle between two codes, the code changes. The loss is
the KL divergence from the unquantized model's next-token distributions, so that no labels are
needed and the student learns what it lost.
Sources: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013;
Liu et al., "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", 2023.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from inferlab.compression.blocks import checked_tokens
from inferlab.compression.training import (
    LEARNING_RATE,
    OnStep,
    check_training,
    kl_loss,
    train_to_match,
)
from inferlab.models.decoder import Decoder
from inferlab.models.projections import quantizable, replace_projection
from inferlab.quant.formats import WeightFormat, get_format
from inferlab.quant.grid import quantize

__all__ = ["FakeQuantizedLinear", "finetune_quantized", "kl_loss", "round_straight_through"]


class FakeQuantizedLinear(nn.Module):
    """y = x W'^T + b, W' the master weights [N, K] rounded anew at each call."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, format: WeightFormat):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias, self.format = weight, bias, format

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N]."""
        return F.linear(x, round_straight_through(self.weight, self.format), self.bias)


def round_straight_through(weight: torch.Tensor, format: WeightFormat) -> torch.Tensor:
    """[N, K] rounded weights whose gradient is that of `weight`: w + (w' - w), the bracket held."""
    with torch.no_grad():
        moved = quantize(weight, format).dequantize(weight.dtype) - weight
    return weight + moved


def finetune_quantized(
    decoder: Decoder,
    reference: Decoder,
    token_ids: torch.Tensor,
    format: WeightFormat | str,
    steps: int = 40,
    *,
    learning_rate: float = LEARNING_RATE,
    tokens_per_step: int = 512,
    keep: Sequence[str] = (),
    seed: int = 0,
    on_step: OnStep | None = None,
) -> list[float]:
    """Train `decoder`'s projections in place to lose little when rounded; the loss of each step.

    `decoder` is float32 and unquantized, and stays so: round it with `quantize_decoder(decoder,
    format, "rtn")` afterwards, with the same `keep`. `reference` is a decoder of the same function
    of any dtype. `token_ids` [n, T] is read in shuffled windows, `tokens_per_step` at a time, over
    again when it ends. AdamW, learning rate warmed up and then lowered to 0 linearly. A matrix's
    rate is `learning_rate` times its root mean square: the distance between codes goes with the
    size of the weights, which differs tenfold between layers. Embedding (and a head tied to it),
    norms and biases stay.

    UserError for a loss that is not finite, and when interrupted: the weights are then those of the
    last step whose loss was.
    """
    format = get_format(format) if isinstance(format, str) else format
    token_ids = checked_tokens(decoder, token_ids)
    check_training(decoder, reference, steps, learning_rate)
    plain = quantizable(decoder, format, keep)
    masters = [module.weight for _, module in plain if module.weight is not decoder.embedding]
    try:
        for name, module in plain:
            fake = FakeQuantizedLinear(module.weight, module.bias, format)
            replace_projection(decoder, name, fake)
        return train_to_match(
            decoder, reference, masters, token_ids, steps, learning_rate=learning_rate,
            tokens_per_step=tokens_per_step, seed=seed, on_step=on_step,
        )  # fmt: skip
    finally:
        for name, module in plain:
            replace_projection(decoder, name, module)
