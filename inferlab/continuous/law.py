"""What does a batch lose that waits for its longest answer? By hand, before anything runs.

In decode steps: a static batch of B takes as many as its longest answer, a continuous one of B as
many as B answers have on average. A step takes `fixed_s` and `row_s` more for each row.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inferlab.errors import UserError
from inferlab.lengths import Lengths


def expected_longest(lengths: Sequence[float], batch_size: int) -> float:
    """E[max of B]: the mean longest of `batch_size` lengths, drawn with replacement.

    Of n sorted lengths x_1 <= ... <= x_n the longest of B is x_i with probability
    (i/n)^B - ((i-1)/n)^B.
    """
    if batch_size < 1:
        raise UserError("a batch has at least one row")
    ordered = np.sort(np.asarray(lengths, dtype=float))
    if not ordered.size:
        raise UserError("there are no lengths")
    ranks = np.arange(ordered.size + 1) / ordered.size
    return float(ordered @ np.diff(ranks**batch_size))


def longest_over_mean(requests: Sequence[Lengths], batch_size: int) -> float:
    """E[max of B] / mean of the decode steps that the answers take (the first token is free).

    What continuous batching wins at most: where a step takes as long for one row as for B.
    """
    steps = decode_steps(requests)
    return expected_longest(steps, batch_size) / float(np.mean(steps))


def expected_gain(
    requests: Sequence[Lengths], batch_size: int, fixed_s: float, row_s: float,
    read_s: float = 0.0,
) -> float:  # fmt: skip
    """Throughput of continuous over static batching, when the line never ends.

    For B answers a static batch takes B read + fixed E[max] + row B mean, a continuous one
    B read + (fixed + row B) mean: who has finished costs no row in either, only the shared part of
    the step is spent on fewer. `read_s` is what reading a prompt takes.
    """
    steps = decode_steps(requests)
    mean, longest = float(np.mean(steps)), expected_longest(steps, batch_size)
    shared = batch_size * (read_s + row_s * mean)
    return (shared + fixed_s * longest) / (shared + fixed_s * mean)


def static_steps(requests: Sequence[Lengths], batch_size: int) -> int:
    """Decode steps of static batches of `batch_size`, in the order given."""
    steps = decode_steps(requests)
    return sum(max(steps[i : i + batch_size]) for i in range(0, len(steps), batch_size))


def decode_steps(requests: Sequence[Lengths]) -> list[int]:
    """Steps that each answer takes after the prefill, which gives its first token."""
    return [r.output_len - 1 for r in requests]
