"""How far do a variant's predictions lie from those of the reference, on the same text?

At every position of every window, both models give a distribution over the next token; the figure
is the KL divergence KL(reference || variant) in nats, which needs no right answer. The logits of
20,000 positions would fill gigabytes, so the reference keeps its final hidden states, and the head
makes logits of them again, a slice at a time.
Letters: n windows, T positions each, H hidden size, V vocabulary.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from inferlab.errors import MeasurementError, UserError
from inferlab.models.decoder import Decoder
from inferlab.quality.text import QualityText
from inferlab.stats import REFUSED_FROM_Q, percentile, requests_for_percentile

MIN_POSITIONS_FOR_P99 = requests_for_percentile(REFUSED_FROM_Q)
# Log-probabilities of the reference up to this size are kept; larger ones are made again each time.
KEPT_BYTES = 2**29
# Positions a forward pass, and numbers in one slice [positions, V] of float32: on a CPU, a slice
# that stays in the cache takes a fifth of the time of one that does not.
BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
SLICE_NUMBERS = {"cpu": 2**21, "cuda": 2**27}

LogitsFunction = Callable[[torch.Tensor], Any]  # [B, T] token ids -> [B, T, V]


@dataclass(frozen=True, slots=True)
class QualityResult:
    """A variant against its reference on one text. Divergences in nats a position.

    `kld_p99` is None below 459 positions. `kld_stderr` is the standard error of the mean over
    windows, which are independent where positions are not; NaN for one window. `top1_ratio`: share
    of positions where both find the same token most likely. Perplexities are of the text's own next
    tokens, the first of each window left out.
    """

    text: str
    num_tokens: int
    kld_mean: float
    kld_stderr: float
    kld_p99: float | None
    top1_ratio: float
    perplexity: float
    reference_perplexity: float
    window_klds: tuple[float, ...]  # mean of each window, to compare variants window by window

    def metrics(self) -> dict[str, float]:
        """Values for a Recorder, by the names that records use."""
        values = {
            "kld_mean_nats": self.kld_mean,
            "kld_stderr_nats": self.kld_stderr,
            "kld_p99_nats": self.kld_p99,
            "top1_ratio": self.top1_ratio,
            "perplexity": self.perplexity,
        }
        return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}


class Reference:
    """What the unquantized model says about a text: made once, compared with many variants.

    Keeps the decoder's head: quantize another decoder, or the same one afterwards, since that
    replaces modules and leaves this head as it is. Raises UserError for a decoder that predicts the
    text no better than chance, as one with random weights does. `kept_bytes`: the default holds
    2,700 positions of SmolLM2; on a longer text the head runs once more for each variant.
    """

    def __init__(self, decoder: Decoder, text: QualityText, kept_bytes: int = KEPT_BYTES) -> None:
        if not isinstance(decoder, Decoder):
            raise UserError("a reference must be an unquantized decoder: load_decoder(...)")
        self.text = text
        self.vocab_size = decoder.config.vocab_size
        if text.windows.min() < 0 or text.windows.max() >= self.vocab_size:
            raise UserError(
                f"a token id of {text.name} lies outside 0 to {self.vocab_size - 1}: load the "
                f"text with the tokenizer of {decoder.config.name}"
            )
        self._head = decoder.head
        self._device = decoder.device
        self._hidden = _hidden_states(decoder, text.windows)  # [n T, H]
        self._slice = max(1, _of(SLICE_NUMBERS, self._device) // self.vocab_size)
        keeps = text.num_tokens * self.vocab_size * 4 <= kept_bytes
        kept, top1, losses = [], [], []
        targets = _next_tokens(text.windows).to(self._device)
        for start in range(0, text.num_tokens, self._slice):
            rows = slice(start, start + self._slice)
            log_p = self._computed(rows)
            top1.append(log_p.argmax(dim=-1))
            losses.append(-log_p.gather(-1, targets[rows, None]).squeeze(-1))
            if keeps:
                kept.append(log_p)
        self._kept = torch.cat(kept) if keeps else None
        self.top1 = torch.cat(top1)  # [n T]
        losses = torch.cat(losses)
        if not torch.isfinite(losses).all():
            raise MeasurementError("the reference's logits are not finite: check its weights")
        self._probe = losses[: self._slice].clone()
        self.perplexity = _perplexity(losses, text.windows.shape[1])
        if self.perplexity > self.vocab_size / 2:
            raise UserError(
                f"{decoder.config.name} predicts {text.name} no better than chance (perplexity "
                f"{self.perplexity:.0f}): its weights are random, or the text is not made with its "
                "tokenizer; quality needs weights='real'"
            )

    def log_probabilities(self, rows: slice) -> torch.Tensor:
        """[positions, V] float32 of some of the n T positions."""
        return self._computed(rows) if self._kept is None else self._kept[rows]

    @torch.inference_mode()
    def _computed(self, rows: slice) -> torch.Tensor:
        return self._head(self._hidden[rows]).float().log_softmax(dim=-1)

    def check_head(self) -> None:
        """Refuse to go on when the head was changed in place since the reference was made."""
        rows = slice(0, len(self._probe))
        targets = _next_tokens(self.text.windows)[rows, None].to(self._device)
        now = -self.log_probabilities(rows).gather(-1, targets).squeeze(-1)
        if not torch.allclose(now, self._probe, rtol=1e-3, atol=1e-3):
            raise UserError(
                "the head of the reference was changed after the reference was made: "
                "make the variant from a decoder of its own"
            )


@torch.inference_mode()
def compare(variant: Decoder | LogitsFunction, reference: Reference) -> QualityResult:
    """The variant's quality on the reference's text, positions taken one slice at a time.

    `variant`: a decoder, on any device and in any number format, or a function from token ids
    [B, T] to logits [B, T, V] (tensor or array). Raises UserError for another vocabulary or shape,
    MeasurementError when its logits are not finite.
    """
    reference.check_head()
    text, device = reference.text, reference._device
    window = text.windows.shape[1]
    targets = _next_tokens(text.windows).to(device)
    divergences, losses, agreements = [], [], []
    start = 0
    for logits in _logits_of(variant, text.windows, reference.vocab_size):
        for part in logits.flatten(0, 1).split(reference._slice):
            rows = slice(start, start + len(part))
            start = rows.stop
            log_q = part.to(device).float().log_softmax(dim=-1)
            losses.append(-log_q.gather(-1, targets[rows, None]).squeeze(-1))
            agreements.append(log_q.argmax(dim=-1) == reference.top1[rows])
            divergences.append(kl_divergence(reference.log_probabilities(rows), log_q))
    divergences = torch.cat(divergences)
    finite = torch.isfinite(divergences)
    if not finite.all():
        position = int((~finite).nonzero()[0])
        raise MeasurementError(
            f"the variant's logits are not finite (window {position // window}, position "
            f"{position % window} of {text.name}): check its weights and scales"
        )
    klds = divergences.double().cpu().numpy()
    window_klds = klds.reshape(-1, window).mean(axis=1)
    spread = window_klds.std(ddof=1) if len(window_klds) > 1 else math.nan
    return QualityResult(
        text=text.name,
        num_tokens=text.num_tokens,
        kld_mean=float(klds.mean()),
        kld_stderr=float(spread / math.sqrt(len(window_klds))),
        kld_p99=percentile(klds, 99) if klds.size >= MIN_POSITIONS_FOR_P99 else None,
        top1_ratio=float(torch.cat(agreements).double().mean()),
        perplexity=_perplexity(torch.cat(losses), window),
        reference_perplexity=reference.perplexity,
        window_klds=tuple(window_klds.tolist()),
    )


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats, [..., V] float32 log-probabilities -> [...].

    sum p (log p - log q) + sum q - sum p: the last two are both 1 but for rounding, and cancel that
    of the first, which alone is wrong by several 1e-6 (with them, by 3e-7 at V = 49,152).
    """
    p = log_p.exp()
    rounding = log_q.exp().sum(dim=-1) - p.sum(dim=-1)
    return p.mul_(log_p - log_q).sum(dim=-1) + rounding


def _logits_of(
    variant: Decoder | LogitsFunction, windows: torch.Tensor, vocab_size: int
) -> Iterator[torch.Tensor]:
    """[B, T, V] logits of a few windows at a time."""
    config = getattr(variant, "config", None)
    if config is not None and config.vocab_size != vocab_size:
        raise UserError(_other_vocabulary(config.vocab_size, vocab_size))
    for part in _batches(windows, getattr(variant, "device", None)):
        logits = all_logits(variant, part)
        if logits.shape[:-1] != part.shape:
            raise UserError(
                f"logits of shape {list(logits.shape)} do not belong to token ids "
                f"{list(part.shape)}: one row of the vocabulary is needed for each position"
            )
        if logits.shape[-1] != vocab_size:
            raise UserError(_other_vocabulary(logits.shape[-1], vocab_size))
        yield logits


def all_logits(variant: Decoder | LogitsFunction, token_ids: torch.Tensor) -> torch.Tensor:
    """[B, T] token ids -> [B, T, V] of a decoder (or what stands in for one) or a function."""
    if not hasattr(variant, "new_cache"):
        return torch.as_tensor(variant(token_ids))
    batch, length = token_ids.shape
    positions = torch.arange(length, device=variant.device).unsqueeze(0)
    cache = variant.new_cache("none", batch, length)
    return variant(token_ids.to(variant.device), cache, positions, all_positions=True)


@torch.inference_mode()
def _hidden_states(decoder: Decoder, windows: torch.Tensor) -> torch.Tensor:
    """[n T, H] after the final norm."""
    return torch.cat(
        [
            decoder.final_hidden(part.to(decoder.device)).flatten(0, 1)
            for part in _batches(windows, decoder.device)
        ]
    )


def _batches(windows: torch.Tensor, device: Any) -> tuple[torch.Tensor, ...]:
    return windows.split(max(1, _of(BATCH_TOKENS, device) // windows.shape[1]))


def _of(limits: dict[str, int], device: Any) -> int:
    return limits["cuda" if str(device).startswith("cuda") else "cpu"]


def _next_tokens(windows: torch.Tensor) -> torch.Tensor:
    """[n T]: what follows each position; the last of a window has nothing, and points at itself."""
    return torch.cat((windows[:, 1:], windows[:, -1:]), dim=1).flatten()


def _perplexity(losses: torch.Tensor, window: int) -> float:
    """exp of the mean negative log-likelihood; [n T] losses, the last of each window left out."""
    mean = losses.view(-1, window)[:, :-1].double().mean()
    return float(mean.exp())


def _other_vocabulary(found: int, wanted: int) -> str:
    return (
        f"the variant has a vocabulary of {found}, the reference one of {wanted}: "
        "only variants of the same model can be compared"
    )
