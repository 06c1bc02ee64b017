"""Which requests does a load consist of, and when is each due?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inferlab import lengths
from inferlab.client.prompts import in_words, open_tokenizer, texts, word_tokens
from inferlab.errors import UserError
from inferlab.models.config import PRESETS
from inferlab.trace.file import MAX_EVENTS
from inferlab.workload import (
    Workload,
    burst_times,
    constant_times,
    gamma_times,
    poisson_times,
    scheduled_at,
    unequal_batch,
    with_shared_prefix,
)

ARRIVALS = ("poisson", "gamma", "constant", "bursts", *lengths.NAMES)
LENGTHS = ("constant", "lognormal", *lengths.NAMES)
ANY_VOCAB_SIZE = 1000  # of a model that we do not know: every tokenizer has as many tokens
MOST_REQUESTS = 100_000
MOST_OF_USERS = 10_000  # requests made ready for a closed loop that ends with its duration
EXTRA_EVENTS = 2  # of an answer, beside one a token: an empty first chunk, one that only ends it


class CannotPlan(UserError):
    """The rate, the duration and the lengths make a load that is too large, or none at all."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to send. Lengths in tokens: means, or the value itself where they are constant.

    `rate_req_per_s` is the open loop's, `concurrency` the closed loop's. With `duration_s` the
    open loop sends what is due until then, the closed loop what its users get to, up to
    `MOST_OF_USERS`; `num_requests` is then the most. Else there are `num_requests`. `length_scale`
    multiplies the lengths of a mix. No request has more than `max_len` tokens in all (None: what
    the model's preset allows, if it is known): a longer prompt is cut.
    """

    model: str
    rate_req_per_s: float | None = None
    concurrency: int | None = None
    num_requests: int | None = 100
    duration_s: float | None = None
    arrivals: str = "poisson"
    arrival_cv: float = 1.0
    lengths: str = "constant"
    prompt_len: int = 128
    output_len: int = 64
    length_cv: float = 1.0
    length_scale: float = 1.0
    shared_prefix_len: int = 0
    num_prefixes: int = 1
    max_len: int | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    as_text: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.rate_req_per_s is None) == (self.concurrency is None):
            raise UserError("a load has either a rate (open loop) or a concurrency (closed loop)")
        rate = self.rate_req_per_s
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise UserError(f"the rate must be above 0 requests/s, not {rate!r}")
        if self.concurrency is not None and self.concurrency < 1:
            raise UserError(f"the concurrency must be at least 1, not {self.concurrency}")
        if self.arrivals not in ARRIVALS:
            known = ", ".join(ARRIVALS)
            raise UserError(f"unknown arrivals {self.arrivals[:40]!r}; known: {known}")
        if self.num_requests is None and self.duration_s is None:
            raise UserError("a load needs a number of requests or a duration")
        if self.duration_s is not None and not 0 < self.duration_s <= 86_400:
            raise UserError("a duration lies above 0 s and within a day")
        if not 1 <= self.count <= MOST_REQUESTS:
            raise CannotPlan(f"a load has 1 to {MOST_REQUESTS:,} requests, not {self.count:,}")
        if self.shared_prefix_len < 0:
            raise UserError("the shared prefix cannot have fewer than 0 tokens")

    @property
    def count(self) -> int:
        """Requests to prepare; of an open loop with a duration, those expected within it."""
        if self.num_requests is not None:
            return self.num_requests
        if self.rate_req_per_s is None:  # more than a user can have answered: 100 a second
            return min(MOST_OF_USERS, math.ceil(100 * self.concurrency * self.duration_s))
        return math.ceil(self.rate_req_per_s * self.duration_s)

    def at_rate(self, rate_req_per_s: float, seed: int) -> LoadPlan:
        """The same load at another rate, with prompts of its own: nothing is cached from before."""
        return replace(self, rate_req_per_s=rate_req_per_s, concurrency=None, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workload ready to send: `prompts` are its texts where text is sent; `mix` is a name."""

    workload: Workload
    prompts: list[str] | None
    mix: str
    clipped: int  # prompts cut to fit


def prepare(plan: LoadPlan) -> Prepared:
    """Draw lengths, prompts and arrival times; the same plan always gives the same workload."""
    mix = length_mix(plan)
    times = None if plan.rate_req_per_s is None else arrival_times(plan)
    drawn = mix.sample(plan.count if times is None else len(times), plan.seed)
    preset = PRESETS.get(plan.model)
    most = plan.max_len or (preset.max_context_len if preset else None)
    room = math.inf if most is None else most - plan.shared_prefix_len
    if room < 2:
        raise UserError(f"a shared prefix of {plan.shared_prefix_len} tokens leaves no room")
    outputs = [int(min(pair.output_len, room - 1)) for pair in drawn]
    drawn, outputs = _that_fit_a_trace(plan, drawn, outputs)
    prompts = [
        int(min(pair.prompt_len, room - output))
        for pair, output in zip(drawn, outputs, strict=True)
    ]
    clipped = sum(
        prompt < pair.prompt_len or output < pair.output_len
        for pair, prompt, output in zip(drawn, prompts, outputs, strict=True)
    )
    tokenizer = words = None
    if plan.as_text:
        tokenizer = open_tokenizer(_tokenizer_path(plan))
        words = word_tokens(tokenizer)
    known = preset.vocab_size if preset else ANY_VOCAB_SIZE
    vocab = len(words) if words else plan.vocab_size or known
    workload = unequal_batch(vocab, prompts, outputs, plan.seed)
    if plan.shared_prefix_len:
        workload = with_shared_prefix(workload, vocab, plan.shared_prefix_len, plan.num_prefixes)
    if words:
        workload = in_words(workload, words)
    if times is not None:
        workload = scheduled_at(workload, times)
    return Prepared(workload, texts(workload, tokenizer) if tokenizer else None, mix.name, clipped)


def length_mix(plan: LoadPlan) -> lengths.LengthMix:
    """The mix by its name, or from the CSV file of that path."""
    if plan.lengths == "constant":
        mix = lengths.constant(plan.prompt_len, plan.output_len)
    elif plan.lengths == "lognormal":
        mix = lengths.lognormal(plan.prompt_len, plan.output_len, plan.length_cv)
    elif plan.lengths in lengths.NAMES:
        mix = lengths.load_mix(plan.lengths)
    elif Path(plan.lengths).suffix in (".csv", ".gz"):
        mix = lengths.load_trace(plan.lengths)
    else:
        known = ", ".join(LENGTHS)
        raise UserError(f"unknown lengths {plan.lengths[:40]!r}; known: {known}, or a .csv file")
    return mix.scaled(plan.length_scale)


def arrival_times(plan: LoadPlan) -> np.ndarray:
    """Seconds at which requests of an open loop are due, in order: those within `duration_s`."""
    if plan.duration_s is None:
        return _first_times(plan, plan.count)
    # arrivals come in clumps: how many fall into a duration is known when they are drawn
    most = MOST_REQUESTS + 1 if plan.num_requests is None else plan.num_requests
    count = min(most, plan.count + 100)
    times = _first_times(plan, count)
    while times[-1] < plan.duration_s and count < most:
        count = min(most, 2 * count)
        times = _first_times(plan, count)
    times = times[times < plan.duration_s]
    rate = f"{plan.rate_req_per_s:.3g} requests/s"
    if len(times) > MOST_REQUESTS:
        raise CannotPlan(
            f"{plan.duration_s:g} s at {rate} are more than {MOST_REQUESTS:,} requests: "
            "take a shorter duration"
        )
    if not len(times):
        raise CannotPlan(f"no request is due within {plan.duration_s:g} s at {rate}")
    return times


def _first_times(plan: LoadPlan, count: int) -> np.ndarray:
    """[count] due times; more of them begin with the same ones."""
    rate, seed = plan.rate_req_per_s, plan.seed
    if plan.arrivals == "constant":
        return constant_times(count, rate)
    if plan.arrivals == "gamma":
        return gamma_times(count, rate, plan.arrival_cv, seed)
    if plan.arrivals == "bursts":
        return burst_times(count, rate, seed=seed)
    if plan.arrivals in lengths.NAMES:
        return np.cumsum(lengths.interarrival_gaps(plan.arrivals, count, seed)) / rate
    return poisson_times(count, rate, seed)


def _that_fit_a_trace(plan: LoadPlan, drawn: list, outputs: list[int]) -> tuple[list, list[int]]:
    """All of the requests, where the events of their answers can be saved and read again.

    A closed loop that ends with its duration hardly needs all: it has as many as fit.
    """
    events = np.cumsum(np.array(outputs) + EXTRA_EVENTS)
    if events[-1] <= MAX_EVENTS:
        return drawn, outputs
    if plan.concurrency is None or plan.num_requests is not None:
        raise CannotPlan(
            f"{len(outputs):,} requests of {np.mean(outputs):.0f} tokens are more than the "
            f"{MAX_EVENTS:,} events of a trace: take fewer requests, or shorter answers"
        )
    fit = max(1, int(np.searchsorted(events, MAX_EVENTS, "right")))
    return drawn[:fit], outputs[:fit]


def _tokenizer_path(plan: LoadPlan) -> Path:
    """Folder of the tokenizer that was named, or of the model's preset."""
    name = plan.tokenizer or plan.model
    if name in PRESETS:
        from inferlab.models.store import ensure_model

        return ensure_model(name)
    if plan.tokenizer is None:
        raise UserError(
            f"prompts as text need a tokenizer, and {plan.model[:40]!r} is no preset: "
            "name its folder (--tokenizer)"
        )
    return Path(plan.tokenizer)
