"""What is asked of a backend: prompts as token ids, output lengths, and when each request is due.

A workload is drawn from a seed with NumPy alone, so that every backend gets the same token ids.
Chapter: chapters/01_metrics.md  Lab: labs/01_metrics.ipynb
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferlab.errors import UserError

MAX_CV = 50.0  # a clump of some thousand requests, then a pause
_PREFIX_STREAM = 1  # keeps the tokens of prefixes apart from those of prompts


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request to make: due `scheduled` seconds after the run starts."""

    id: str
    scheduled: float
    prompt_token_ids: tuple[int, ...]
    output_len: int

    @property
    def prompt_len(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of their scheduled times, and the seed that drew them."""

    requests: tuple[RequestSpec, ...]
    seed: int

    @property
    def batch_size(self) -> int:
        """Number of requests."""
        return len(self.requests)


def uniform_batch(
    vocab_size: int, batch_size: int, prompt_len: int, output_len: int, seed: int = 0
) -> Workload:
    """`batch_size` prompts of equal length, tokens uniform over the vocabulary, all due at 0 s."""
    _check_whole(batch_size, "batch_size")
    return unequal_batch(vocab_size, [prompt_len] * batch_size, output_len, seed)


def unequal_batch(
    vocab_size: int,
    prompt_lens: Sequence[int],
    output_len: int | Sequence[int],
    seed: int = 0,
) -> Workload:
    """One prompt for each of `prompt_lens`, all due at 0 s.

    `output_len` is one number for all or one a prompt. Request i depends on the seed, on i and on
    its own length only, so a larger batch begins with the prompts of a smaller one.
    """
    _check_whole(vocab_size, "vocab_size")
    if len(prompt_lens) == 0:
        raise UserError("a workload needs at least one prompt length")
    output_lens = [output_len] * len(prompt_lens) if np.isscalar(output_len) else list(output_len)
    if len(output_lens) != len(prompt_lens):
        raise UserError(f"{len(prompt_lens)} prompt lengths but {len(output_lens)} output lengths")
    requests = []
    for index, (length, output) in enumerate(zip(prompt_lens, output_lens, strict=True)):
        _check_whole(output, "output_len")
        token_ids = _drawn_tokens(vocab_size, length, [_checked_seed(seed), index])
        requests.append(RequestSpec(f"r{index:04d}", 0.0, token_ids, int(output)))
    return Workload(tuple(requests), seed)


def random_prompt(vocab_size: int, length: int, seed: int, index: int) -> list[int]:
    """Prompt `index` of a seed: tokens uniform over the vocabulary, whatever the others are."""
    return np.random.default_rng([seed, index]).integers(vocab_size, size=length).tolist()


def poisson_times(count: int, rate_req_per_s: float, seed: int = 0) -> np.ndarray:
    """[count] arrival times in seconds of a Poisson process: independent exponential gaps."""
    _check_whole(count, "count")
    _check_rate(rate_req_per_s)
    gaps = np.random.default_rng(_checked_seed(seed)).exponential(1 / rate_req_per_s, size=count)
    return np.cumsum(gaps)


def constant_times(count: int, rate_req_per_s: float) -> np.ndarray:
    """[count] arrival times in seconds at an even pace, the first at 0 s."""
    _check_whole(count, "count")
    _check_rate(rate_req_per_s)
    return np.arange(count) / rate_req_per_s


def gamma_times(count: int, rate_req_per_s: float, cv: float = 1.0, seed: int = 0) -> np.ndarray:
    """[count] arrival times in seconds with independent gamma gaps of coefficient of variation cv.

    cv 1 is a Poisson process; above 1 requests come in clumps with pauses between, below 1 they
    come more evenly. vLLM's bench calls 1/cv^2 the burstiness.
    """
    _check_whole(count, "count")
    _check_rate(rate_req_per_s)
    if not (np.isfinite(cv) and 0 < cv <= MAX_CV):
        raise UserError(f"cv must lie above 0 and up to {MAX_CV:g}, not {cv!r}")
    shape = 1 / cv**2
    rng = np.random.default_rng(_checked_seed(seed))
    return np.cumsum(rng.gamma(shape, 1 / (rate_req_per_s * shape), size=count))


def burst_times(
    count: int,
    rate_req_per_s: float,
    burst_ratio: float = 5.0,
    burst_share: float = 0.1,
    burst_s: float = 10.0,
    seed: int = 0,
) -> np.ndarray:
    """[count] arrival times in seconds of a Poisson process that switches between two rates.

    A burst has `burst_ratio` times the calm rate, lasts `burst_s` seconds on average, and bursts
    fill `burst_share` of the time; `rate_req_per_s` is the mean over both states. Source: the
    two-state Markov-modulated Poisson process (Fischer and Meier-Hellstern, 1993).
    """
    _check_whole(count, "count")
    _check_rate(rate_req_per_s)
    if not (np.isfinite(burst_ratio) and burst_ratio >= 1):
        raise UserError(f"burst_ratio must be at least 1, not {burst_ratio!r}")
    if not 0 < burst_share < 1:
        raise UserError(f"burst_share must lie between 0 and 1, not {burst_share!r}")
    if not (np.isfinite(burst_s) and burst_s > 0):
        raise UserError(f"burst_s must be above 0 s, not {burst_s!r}")
    calm_rate = rate_req_per_s / (1 + burst_share * (burst_ratio - 1))
    rates = (calm_rate, calm_rate * burst_ratio)
    stays_s = (burst_s * (1 - burst_share) / burst_share, burst_s)
    rng = np.random.default_rng(_checked_seed(seed))
    state = int(rng.random() < burst_share)
    now, switch = 0.0, rng.exponential(stays_s[state])
    times: list[float] = []
    while len(times) < count:
        gap = rng.exponential(1 / rates[state])
        if now + gap < switch:  # gaps have no memory: at a switch a new one may be drawn
            now += gap
            times.append(now)
        else:
            now, state = switch, 1 - state
            switch = now + rng.exponential(stays_s[state])
    return np.array(times)


def with_shared_prefix(
    workload: Workload,
    vocab_size: int,
    prefix_len: int,
    num_prefixes: int = 1,
    seed: int | None = None,
) -> Workload:
    """The same requests, each prompt behind one of `num_prefixes` prefixes of `prefix_len` tokens.

    Request i gets prefix i modulo `num_prefixes`, as the users of that many system prompts would;
    prompts become longer by `prefix_len`.
    """
    seed = workload.seed if seed is None else seed
    _check_whole(num_prefixes, "num_prefixes")
    if prefix_len == 0:
        return workload
    prefixes = [
        _drawn_tokens(vocab_size, prefix_len, [_checked_seed(seed), index, _PREFIX_STREAM])
        for index in range(num_prefixes)
    ]
    requests = tuple(
        replace(spec, prompt_token_ids=prefixes[index % num_prefixes] + spec.prompt_token_ids)
        for index, spec in enumerate(workload.requests)
    )
    return Workload(requests, workload.seed)


def poisson_arrivals(
    workload: Workload, rate_req_per_s: float, seed: int | None = None
) -> Workload:
    """The same requests, due at the times of a Poisson process (seed: the workload's own)."""
    seed = workload.seed if seed is None else seed
    return scheduled_at(workload, poisson_times(workload.batch_size, rate_req_per_s, seed))


def scheduled_at(workload: Workload, times_s: Sequence[float] | np.ndarray) -> Workload:
    """The same requests, due at the given times: one a request, finite, >= 0 s, in order."""
    times = np.asarray(times_s, dtype=float)
    if times.shape != (workload.batch_size,):
        raise UserError(f"{workload.batch_size} requests need as many times, not {times.shape}")
    if not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) < 0).any():
        raise UserError("scheduled times must be finite, not negative, and in order")
    pairs = zip(workload.requests, times.tolist(), strict=True)
    requests = tuple(replace(spec, scheduled=time) for spec, time in pairs)
    return Workload(requests, workload.seed)


def _drawn_tokens(vocab_size: int, length: int, seed: list[int]) -> tuple[int, ...]:
    _check_whole(vocab_size, "vocab_size")
    _check_whole(length, "prompt_len")
    return tuple(np.random.default_rng(seed).integers(vocab_size, size=int(length)).tolist())


def _check_whole(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed must be a whole number of at least 0, not {seed!r}")
    return int(seed)


def _check_rate(rate_req_per_s: float) -> None:
    if not (np.isfinite(rate_req_per_s) and rate_req_per_s > 0):
        raise UserError(f"the arrival rate must be above 0 requests/s, not {rate_req_per_s!r}")
