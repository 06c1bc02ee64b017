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

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from inferlab.compression.blocks import checked_tokens
from inferlab.errors import UserError
from inferlab.models.decoder import Decoder
from inferlab.models.projections import quantizable, replace_projection
from inferlab.quant.formats import WeightFormat, get_format
from inferlab.quant.grid import quantize

LEARNING_RATE = 5e-4  # of each matrix's root mean square
WARMUP_STEPS = 4
BETAS = (0.9, 0.95)  # the second moment forgets within the few steps that there are


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


def kl_loss(student_logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """Mean over positions of KL(reference || student), in nats; logits [..., V]."""
    vocab_size = student_logits.shape[-1]
    return F.kl_div(
        F.log_softmax(student_logits.float(), -1).view(-1, vocab_size),
        F.log_softmax(reference_logits.float(), -1).view(-1, vocab_size),
        reduction="batchmean",
        log_target=True,
    )


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
    on_step: Callable[[int, float], None] | None = None,
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
    _check(decoder, reference, steps, learning_rate)
    plain = quantizable(decoder, format, keep)
    masters = [module.weight for _, module in plain if module.weight is not decoder.embedding]
    try:
        for name, module in plain:
            fake = FakeQuantizedLinear(module.weight, module.bias, format)
            replace_projection(decoder, name, fake)
        with torch.inference_mode(False), torch.enable_grad():
            batches = _batches(token_ids, tokens_per_step, steps, seed)
            return _train(decoder, reference, masters, batches, learning_rate, on_step)
    finally:
        for name, module in plain:
            replace_projection(decoder, name, module)
        for weight in masters:
            weight.requires_grad_(False)
            weight.grad = None


def _train(
    decoder: Decoder,
    reference: Decoder,
    masters: list[nn.Parameter],
    batches: list[torch.Tensor],
    learning_rate: float,
    on_step: Callable[[int, float], None] | None,
) -> list[float]:
    for weight in masters:
        weight.requires_grad_(True)
    rates = [learning_rate * weight.detach().square().mean().sqrt().item() for weight in masters]
    groups = [{"params": [weight], "lr": rate} for weight, rate in zip(masters, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
    losses: list[float] = []
    good = [weight.detach().clone() for weight in masters]  # of the last finite loss
    try:
        for step, windows in enumerate(batches):
            loss = _step_loss(decoder, reference, windows)
            _refuse_divergence(math.isfinite(loss.item()), step, learning_rate)
            _keep_weights(masters, good)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _schedule(step, len(batches))
            optimizer.step()
            finite = all(bool(torch.isfinite(weight).all()) for weight in masters)
            _refuse_divergence(finite, step, learning_rate)
            losses.append(loss.item())
            if on_step is not None:
                on_step(step, losses[-1])
    except KeyboardInterrupt as error:
        _restore(masters, good)
        raise UserError(
            f"interrupted after {len(losses)} of {len(batches)} steps: the weights are those of "
            "the last whole step before"
        ) from error
    except UserError:
        _restore(masters, good)
        raise
    return losses


def _step_loss(decoder: Decoder, reference: Decoder, windows: torch.Tensor) -> torch.Tensor:
    """KL divergence of the rounded decoder on windows [b, T]."""
    with torch.no_grad():
        # Its own device and dtype; the logits come to the student's.
        hidden = reference.final_hidden(windows.to(reference.device))
        expected = reference.head(hidden).to(decoder.device)
    return kl_loss(decoder.head(decoder.final_hidden(windows)), expected)


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: up over WARMUP_STEPS, then linearly to 0."""
    return min((step + 1) / WARMUP_STEPS, 1.0) * (1 - step / steps)


def _batches(
    token_ids: torch.Tensor, tokens_per_step: int, steps: int, seed: int
) -> list[torch.Tensor]:
    """The windows [b, T] of each step: all of them in random order, then again in another."""
    count, length = token_ids.shape
    size = max(1, tokens_per_step // length)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps * size:
        order += torch.randperm(count, generator=generator).tolist()
    return [token_ids[order[step * size : (step + 1) * size]] for step in range(steps)]


def _refuse_divergence(finite: bool, step: int, learning_rate: float) -> None:
    if not finite:
        raise UserError(
            f"training diverged at step {step} (loss or weights are not finite): lower the "
            f"learning rate ({learning_rate:g})"
        )


def _keep_weights(masters: list[nn.Parameter], good: list[torch.Tensor]) -> None:
    for weight, copy in zip(masters, good, strict=True):
        copy.copy_(weight.detach())


def _restore(masters: list[nn.Parameter], good: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for weight, copy in zip(masters, good, strict=True):
            weight.copy_(copy)


def _check(decoder: Decoder, reference: Decoder, steps: int, learning_rate: float) -> None:
    if decoder.dtype != torch.float32:
        raise UserError("fine-tuning needs float32 master weights: load the decoder in float32")
    if decoder is reference:
        raise UserError("the reference must be a decoder of its own: it may not be trained along")
    if reference.config.vocab_size != decoder.config.vocab_size:
        raise UserError(
            f"{reference.config.name} has another vocabulary than {decoder.config.name}"
        )
    if steps < 1 or not 0 < learning_rate < 1:
        raise UserError("fine-tuning takes 1 step or more and a learning rate between 0 and 1")
