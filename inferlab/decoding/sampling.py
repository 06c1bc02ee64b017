"""Which token comes next: the most likely one, or one drawn from a trimmed distribution?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inferlab.errors import UserError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose: temperature 0 is greedy; otherwise top-k, then top-p, then a draw."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0  # the smallest set of likeliest tokens that holds this probability
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more, not {self.temperature!r}")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise UserError(f"top_k must be a whole number of 0 or more, not {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")

    @property
    def is_greedy(self) -> bool:
        """True when no random number is needed."""
        return self.temperature == 0

    def generator(self, device: torch.device | str) -> torch.Generator | None:
        """The seeded source of random numbers on `device`; None when greedy."""
        return None if self.is_greedy else torch.Generator(device).manual_seed(self.seed)


GREEDY = Sampling()
COLDEST, HOTTEST = 1e-30, 1e30  # temperatures, and their inverses, that float32 can hold


def token_probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """[B, V] probabilities from which a token is drawn, float32; trimmed tokens get 0.

    Order as in Hugging Face: temperature, top-k, top-p. Tokens that tie with the k-th stay.
    """
    scores = logits.float()
    # The largest is 0 before we divide: it stays 0 at any temperature, where 0 / 0 or inf - inf
    # would be no number. A tiny temperature is greedy.
    scores = scores - scores.amax(dim=-1, keepdim=True)
    scores = scores / min(max(sampling.temperature, COLDEST), HOTTEST)
    if 0 < sampling.top_k < scores.shape[-1]:
        threshold = scores.topk(sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < threshold, float("-inf"))
    probabilities = scores.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        # A token stays while the likelier ones together hold less than top_p: the first always.
        dropped = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        dropped[..., 0] = False  # also where top_p is 0 in float32
        probabilities = probabilities.masked_fill(
            torch.zeros_like(dropped).scatter(-1, order, dropped), 0.0
        )
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def choose(
    logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None
) -> torch.Tensor:
    """[B, V] logits -> [B] token ids (int64, same device)."""
    if sampling.is_greedy:
        return logits.argmax(dim=-1)
    probabilities = token_probabilities(logits, sampling)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
