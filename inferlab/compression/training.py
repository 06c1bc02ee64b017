"""How is a changed decoder trained to say what the original one says?

The loss is the KL divergence from the reference's next-token distributions, so that no labels are
needed and the student learns what it lost. One loop for all that changes a model and wants a part
of the loss back: rounded weights, pooled heads, keys and values of low rank.
Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from inferlab.compression.blocks import checked_tokens
from inferlab.errors import UserError
from inferlab.models.cost import is_kept
from inferlab.models.decoder import Decoder
from inferlab.models.projections import plain_weight, projections

LEARNING_RATE = 5e-4  # of each matrix's root mean square
WARMUP_STEPS = 4
BETAS = (0.9, 0.95)  # the second moment forgets within the few steps that there are

OnStep = Callable[[int, float], None]


def kl_loss(student_logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """Mean over positions of KL(reference || student), in nats; logits [..., V]."""
    vocab_size = student_logits.shape[-1]
    return F.kl_div(
        F.log_softmax(student_logits.float(), -1).view(-1, vocab_size),
        F.log_softmax(reference_logits.float(), -1).view(-1, vocab_size),
        reduction="batchmean",
        log_target=True,
    )


def finetune(
    decoder: Decoder,
    reference: Decoder,
    token_ids: torch.Tensor,
    steps: int = 40,
    *,
    learning_rate: float = LEARNING_RATE,
    tokens_per_step: int = 512,
    keep: Sequence[str] = (),
    seed: int = 0,
    on_step: OnStep | None = None,
) -> list[float]:
    """Train `decoder`'s plain projections in place towards `reference`; the loss of each step.

    `decoder` is float32 with weights of its own: what it shares with the reference would be trained
    along. Latent attention's second factor counts as a projection. `keep` names what stays as it
    is. Other arguments, the schedule and the errors are those of `train_to_match`.
    """
    token_ids = checked_tokens(decoder, token_ids)
    chosen = [
        plain_weight(name, module)
        for name, module in projections(decoder)
        if not is_kept(name, keep)
    ]
    ups = {
        f"layers.{index}.attention.up": getattr(layer.attention, "up", None)
        for index, layer in enumerate(decoder.layers)
    }
    chosen += [up for name, up in ups.items() if up is not None and not is_kept(name, keep)]
    masters = [weight for weight in chosen if weight is not decoder.embedding]
    taught = {id(weight) for weight in reference.parameters()}
    if any(id(weight) in taught for weight in masters):
        raise UserError("the decoder shares weights with the reference: load one of its own")
    return train_to_match(
        decoder, reference, masters, token_ids, steps, learning_rate=learning_rate,
        tokens_per_step=tokens_per_step, seed=seed, on_step=on_step,
    )  # fmt: skip


def train_to_match(
    decoder: Decoder,
    reference: Decoder,
    masters: Sequence[nn.Parameter],
    token_ids: torch.Tensor,
    steps: int,
    *,
    learning_rate: float,
    tokens_per_step: int,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> list[float]:
    """Train the weights `masters` of `decoder` in place; the loss of each step.

    `reference` is of any dtype. `token_ids` [n, T] is read in shuffled windows, `tokens_per_step`
    at a time, over again when it ends. AdamW, learning rate warmed up and then lowered to 0
    linearly. A matrix's rate is `learning_rate` times its root mean square, which differs tenfold
    between layers.

    UserError for a loss that is not finite, and when interrupted: the weights are then those of the
    last step whose loss was.
    """
    check_training(decoder, reference, steps, learning_rate)
    masters = list(masters)
    if not masters:
        raise UserError("there is nothing to train: keep= names every projection")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            batches = _batches(token_ids, tokens_per_step, steps, seed)
            return _train(decoder, reference, masters, batches, learning_rate, on_step)
    finally:
        for weight in masters:
            weight.requires_grad_(False)
            weight.grad = None


def _train(
    decoder: Decoder,
    reference: Decoder,
    masters: list[nn.Parameter],
    batches: list[torch.Tensor],
    learning_rate: float,
    on_step: OnStep | None,
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
    """KL divergence of the decoder on windows [b, T]."""
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


def check_training(decoder: Decoder, reference: Decoder, steps: int, learning_rate: float) -> None:
    """Refuse what cannot be trained, or not by this loop."""
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
