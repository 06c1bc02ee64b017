"""Which answers are as many tokens in all and spread ever further?

Lengths are the quantiles of a distribution at evenly spaced ranks, shuffled: no luck of the draw
stands between two spreads.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from inferlab.errors import UserError
from inferlab.lengths import Lengths


def spread_lengths(
    num_requests: int, prompt_len: int, mean: float, cv: float, longest: int, seed: int = 0
) -> list[Lengths]:
    """Answers of log-normal length with mean `mean` and coefficient of variation `cv`.

    All prompts have `prompt_len` tokens. Answers longer than `longest` are cut, and the rest
    stretched so that the mean stays: `cv_of` says how far they are spread in the end. cv 0 is one
    length for all.
    """
    if not (0 <= cv < math.inf) or not 2 <= mean <= longest:
        raise UserError(
            f"answers of mean {mean:g} and cv {cv:g}, at most {longest}, do not exist: "
            "take a mean of 2 or more below the longest and a cv of 0 or more"
        )
    sigma = math.sqrt(math.log1p(cv**2))
    from scipy.stats import norm

    shape = np.exp(sigma * norm.ppf(_ranks(num_requests)))
    return _shuffled(_with_mean(shape, mean, longest), prompt_len, seed)


def capped_exponential(
    num_requests: int, prompt_len: int, mean: float, cap: int, seed: int = 0
) -> list[Lengths]:
    """Answers of exponential length with mean `mean` before they are cut at `cap`.

    The four caps of Anyscale's benchmark of 2023: the mean falls as the cap does.
    """
    if mean < 1 or cap < 1:
        raise UserError("a mean and a cap of at least 1 token are needed")
    lengths = np.clip(np.rint(-mean * np.log1p(-_ranks(num_requests))), 1, cap)
    return _shuffled(lengths, prompt_len, seed)


def cv_of(requests: Sequence[Lengths]) -> float:
    """Standard deviation of the output lengths over their mean."""
    outputs = np.array([r.output_len for r in requests], dtype=float)
    return float(outputs.std() / outputs.mean())


def _ranks(num_requests: int) -> np.ndarray:
    if isinstance(num_requests, bool) or num_requests < 1 or num_requests != int(num_requests):
        raise UserError(f"a mix needs a whole number of requests of at least 1: {num_requests!r}")
    return (np.arange(num_requests) + 0.5) / num_requests


def _with_mean(shape: np.ndarray, mean: float, longest: int) -> np.ndarray:
    """`shape` scaled to whole numbers from 2 to `longest` with that mean."""

    def cut(scale: float) -> np.ndarray:
        return np.clip(shape * scale, 2, longest)

    low, high = 0.0, longest / shape.min()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle).mean() < mean else (low, middle)
    ends = np.rint(np.cumsum(cut(high)))  # rounded so that the sum is kept
    return np.clip(np.diff(ends, prepend=0), 1, longest)


def _shuffled(outputs: np.ndarray, prompt_len: int, seed: int) -> list[Lengths]:
    order = np.random.default_rng(seed).permutation(len(outputs))
    return [Lengths(prompt_len, int(outputs[i])) for i in order]
