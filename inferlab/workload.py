"""What is asked of a backend: prompts as token ids, output lengths, and when each request is due.

A workload is drawn from a seed with NumPy alone, so that every backend gets the same token ids.
Chapter: chapters/01_metrics.md  Lab: labs/01_metrics.ipynb
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferlab.errors import UserError


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
        _check_whole(length, "prompt_len")
        _check_whole(output, "output_len")
        rng = np.random.default_rng([_checked_seed(seed), index])
        token_ids = tuple(rng.integers(vocab_size, size=int(length)).tolist())
        requests.append(RequestSpec(f"r{index:04d}", 0.0, token_ids, int(output)))
    return Workload(tuple(requests), seed)


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
