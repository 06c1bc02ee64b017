"""How many requests a second can a server take, and what does each of them wait, before measuring?

An engine takes two kinds of step: it reads one prompt, or it writes a token for every running
sequence. Both take straight lines of time, measured in process. Everything here follows from those
two lines and the mean request; queues of a finite run are emulated in `underload.emulate`.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from inferlab.errors import UserError
from inferlab.lengths import Lengths
from inferlab.models.config import ModelConfig
from inferlab.models.cost import decode_cost, prefill_cost
from inferlab.roofline import Ceilings, floor_s


@dataclass(frozen=True, slots=True)
class StepModel:
    """Seconds of an engine's steps as two straight lines."""

    decode_s: float  # a decode step, before any row
    row_s: float  # each running sequence on top
    prefill_s: float  # a prompt, before any token
    token_s: float  # each token of the prompt on top

    def __post_init__(self) -> None:
        values = (self.decode_s, self.row_s, self.prefill_s, self.token_s)
        if min(values) < 0 or self.decode_s + self.row_s <= 0:
            raise UserError("a step takes time: no term may be negative, and not all zero")

    def step_s(self, num_seqs: float) -> float:
        """A decode step of `num_seqs` rows."""
        return self.decode_s + self.row_s * num_seqs

    def read_s(self, prompt_len: float) -> float:
        """A step that reads one prompt."""
        return self.prefill_s + self.token_s * prompt_len


def fit_steps(decode: Mapping[int, float], prefill: Mapping[int, float]) -> StepModel:
    """Lines through measured steps: seconds by number of rows, and by prompt length.

    Least squares of the relative error with no negative term; two points each at least.
    """
    return StepModel(*_line(decode, "decode steps"), *_line(prefill, "prompts"))


def _line(seconds: Mapping[int, float], what: str) -> tuple[float, float]:
    if len(seconds) < 2 or min(seconds.values()) <= 0:
        raise UserError(f"a line through {what} needs two sizes or more, all above 0 s")
    sizes, values = np.array(list(seconds), dtype=float), np.array(list(seconds.values()))
    terms = np.column_stack([np.ones_like(sizes), sizes]) / values[:, None]
    (constant, slope), _ = nnls(terms, np.ones_like(values))
    return float(constant), float(slope)


@dataclass(frozen=True, slots=True)
class Demand:
    """What the mean request asks of the engine."""

    read_s: float  # to read its prompt
    decode_steps: float  # output tokens after the first
    output_len: float


def demand(model: StepModel, lengths: Sequence[Lengths]) -> Demand:
    """Mean demand of requests of these lengths."""
    if not lengths:
        raise UserError("demand needs at least one request")
    output_len = float(np.mean([one.output_len for one in lengths]))
    read_s = model.read_s(float(np.mean([one.prompt_len for one in lengths])))
    return Demand(read_s, output_len - 1, output_len)


def capacity_req_per_s(model: StepModel, asked: Demand, max_num_seqs: int) -> float:
    """Requests a second that leave a server whose batch is always full.

    Each request costs its prompt and its share of the decode steps that it takes part in.
    """
    if max_num_seqs < 1:
        raise UserError("max_num_seqs must be at least 1")
    share_s = model.step_s(max_num_seqs) / max_num_seqs
    return 1 / (asked.read_s + asked.decode_steps * share_s)


def expected_tpot_s(model: StepModel, asked: Demand, rate_req_per_s: float) -> float:
    """Mean seconds a token at a Poisson rate, below capacity; inf where no batch is large enough.

    Prompts take the share `rate * read_s` of the time, so decoding advances in the rest. The
    sequence itself is a row, and by Little's law `rate * decode_steps * TPOT` others are with it
    (arrivals see averages): TPOT (1 - rate read_s) = step(1 + rate decode_steps TPOT).
    """
    if rate_req_per_s < 0:
        raise UserError("a rate cannot be negative")
    left = 1 - rate_req_per_s * (asked.read_s + asked.decode_steps * model.row_s)
    return model.step_s(1) / left if left > 0 else math.inf


def knee_req_per_s(model: StepModel, asked: Demand, max_num_seqs: int) -> float:
    """The rate at which throughput over latency is largest (Kleinrock's power), at most capacity.

    An answer takes r + A / (1 - x) seconds with r to read its prompt, A decode steps alone, and
    x = rate (r + decode_steps row_s): `expected_tpot_s` without a wait in line. Then the power
    x (1 - x) / (r (1 - x) + A) is largest at x = (r + A - sqrt(A (r + A))) / r, near one half.
    """
    alone_s, read_s = asked.decode_steps * model.step_s(1), asked.read_s
    both_s = read_s + alone_s
    x = (both_s - math.sqrt(alone_s * both_s)) / read_s if read_s > 0 else 0.5
    per_request_s = read_s + asked.decode_steps * model.row_s
    return min(x / per_request_s, capacity_req_per_s(model, asked, max_num_seqs))


def rate_within_tpot(model: StepModel, asked: Demand, limit_s: float, max_num_seqs: int) -> float:
    """The largest rate whose mean TPOT keeps `limit_s`; 0 when an idle server misses it."""
    per_request_s = asked.read_s + asked.decode_steps * model.row_s
    rate = (1 - model.step_s(1) / limit_s) / per_request_s
    return max(0.0, min(rate, capacity_req_per_s(model, asked, max_num_seqs)))


def hit_gain(model: StepModel, prompt_len: int, block_size: int) -> float:
    """TTFT of a prompt whose full blocks are all cached, over that of a fresh one.

    At least one token has to be read for its logits: the last block is never taken from the cache.
    """
    left = prompt_len - (prompt_len - 1) // block_size * block_size
    return model.read_s(left) / model.read_s(prompt_len)


def roofline_tok_per_s(
    config: ModelConfig, dtype: str, prompt_len: int, output_len: int, num_seqs: int,
    ceilings: Ceilings,
) -> float:  # fmt: skip
    """Output tokens a second that no server can beat with `num_seqs` at a time, all of one length.

    Prompts are read at the larger of their two bounds, all together; each later token is a decode
    step of `num_seqs` rows at its floor, at the mean context.
    """
    read_s = floor_s(prefill_cost(config, dtype, num_seqs, prompt_len), ceilings)
    context_len = prompt_len + output_len // 2
    step_s = floor_s(decode_cost(config, dtype, num_seqs, context_len), ceilings)
    return num_seqs * output_len / (read_s + (output_len - 1) * step_s)
