"""Which requests ask for the same mean work at the same mean rate, and come in another shape?

A ladder of traffic, one change a rung: constant lengths at an even pace (what a quick benchmark
sends), then random arrivals, then lengths that vary, then those of a real service, then bursts
that we impose. A mean lies between two whole numbers of tokens: constant lengths mix the two.
Every rung of a family has the same number of requests, the same span of time, and the same mean
lengths: its capacity is the same, and only the shape differs.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from inferlab.errors import UserError
from inferlab.lengths import Lengths, load_mix, lognormal
from inferlab.workload import (
    RequestSpec,
    Workload,
    burst_times,
    constant_times,
    gamma_times,
    poisson_times,
    scheduled_at,
    unequal_batch,
)

CONVENIENT = "constant-even"
FAMILIES: dict[str, tuple[str, ...]] = {
    "conv": (
        CONVENIENT, "constant-poisson", "lognormal-poisson", "conv-poisson", "conv-bursts",
    ),
    "code": (CONVENIENT, "code-gamma"),
}  # fmt: skip
BURSTS = (4.0, 0.2)  # ours: rate in a burst over the calm rate, share of the time
BURST_GAPS = 12  # mean length of a burst, in mean gaps between requests
CODE_ARRIVAL_CV = 13.152  # of its gaps: data/workloads/azure_llm_2023_summary.csv


def with_means(lengths: Sequence[Lengths], prompt_mean: float, output_mean: float) -> list[Lengths]:
    """The same lengths, stretched to these means (whole tokens, at least one)."""
    found = np.array(lengths, dtype=float)
    target = np.array([prompt_mean, output_mean])
    stretched = found.copy()
    for _ in range(8):  # rounding and the least of one token move the mean a little
        rounded = np.maximum(1, np.rint(stretched)).astype(int)
        stretched *= target / rounded.mean(axis=0)
    missing = np.rint(target * len(found)).astype(int) - rounded.sum(axis=0)
    for column, count in enumerate(missing):  # the last few tokens: to or from the longest
        longest = np.argsort(-rounded[:, column], kind="stable")[: abs(count)]
        rounded[longest, column] += np.sign(count)
    return [Lengths(int(p), int(o)) for p, o in np.maximum(1, rounded)]


def evenly(counts: Sequence[int]) -> list[int]:
    """The same sum of tokens in as many parts that differ by one at most, mixed evenly."""
    num, total = len(counts), sum(counts)
    return [total * (i + 1) // num - total * i // num for i in range(num)]


def service_lengths(family: str, num_requests: int, divisor: int, seed: int) -> list[Lengths]:
    """Lengths of a service of Azure, each divided by `divisor` (1: as they were)."""
    if family not in FAMILIES:
        raise UserError(f"unknown family {family[:40]!r}; known: {', '.join(FAMILIES)}")
    if divisor < 1:
        raise UserError(f"the divisor must be 1 or more, not {divisor!r}")
    return load_mix(f"azure-{family}").scaled(1 / divisor).sample(num_requests, seed)


def rung_lengths(family: str, traffic: str, service: Sequence[Lengths], seed: int) -> list[Lengths]:
    """Lengths of one rung: those of the service, or others of their mean."""
    prompt_mean, output_mean = np.mean(service, axis=0)
    kind = traffic.partition("-")[0]
    if kind == family:
        return list(service)
    if kind == "constant":
        return [Lengths(*one) for one in zip(*map(evenly, zip(*service, strict=True)), strict=True)]
    if kind == "lognormal":
        prompts = np.array(service)[:, 0]
        cv = float(prompts.std() / prompt_mean)
        drawn = lognormal(float(prompt_mean), float(output_mean), cv).sample(len(service), seed)
        return with_means(drawn, prompt_mean, output_mean)
    raise UserError(f"unknown traffic {traffic[:40]!r} of family {family}")


def rung_times(traffic: str, count: int, rate_req_per_s: float, seed: int) -> np.ndarray:
    """[count] arrival times in seconds, stretched so that the mean rate is exact."""
    arrivals: dict[str, Callable[[], np.ndarray]] = {
        "even": lambda: constant_times(count, rate_req_per_s),
        "poisson": lambda: poisson_times(count, rate_req_per_s, seed),
        "gamma": lambda: gamma_times(count, rate_req_per_s, CODE_ARRIVAL_CV, seed),
        "bursts": lambda: burst_times(
            count, rate_req_per_s, *BURSTS, BURST_GAPS / rate_req_per_s, seed
        ),
    }
    times_s = arrivals[traffic.partition("-")[2]]()
    span_s = (count - 1) / rate_req_per_s
    first, last = times_s[0], times_s[-1]
    return (times_s - first) * (span_s / (last - first)) if last > first else times_s * 0.0


def ladder(
    family: str, num_requests: int, rate_req_per_s: float, divisor: int, vocab_size: int, seed: int
) -> dict[str, Workload]:
    """A workload for every rung of `family`."""
    service = service_lengths(family, num_requests, divisor, seed)
    found = {}
    for traffic in FAMILIES[family]:
        lengths = rung_lengths(family, traffic, service, seed)
        times_s = rung_times(traffic, num_requests, rate_req_per_s, seed)
        found[traffic] = scheduled_at(workload_of(lengths, vocab_size, seed), times_s)
    return found


def workload_of(
    lengths: Sequence[Lengths], vocab_size: int, seed: int, distinct: int | None = None
) -> Workload:
    """Requests of these lengths, all due at 0 s; `distinct`: they take turns with so few prompts.

    With `distinct` all prompts must have one length.
    """
    prompts, outputs = zip(*lengths, strict=True)
    if distinct is None:
        return unequal_batch(vocab_size, prompts, outputs, seed)
    if len(set(prompts)) > 1:
        raise UserError("prompts that repeat need one length")
    few = unequal_batch(vocab_size, prompts[:distinct], outputs[:distinct], seed).requests
    return Workload(
        tuple(
            RequestSpec(f"r{i:04d}", 0.0, few[i % distinct].prompt_token_ids, output)
            for i, output in enumerate(outputs)
        ),
        seed,
    )


def lengths_of(workload: Workload) -> list[Lengths]:
    """What an emulated server needs to know of the same requests."""
    return [Lengths(spec.prompt_len, spec.output_len) for spec in workload.requests]


def times_of(workload: Workload) -> list[float]:
    """Their scheduled times in seconds."""
    return [spec.scheduled for spec in workload.requests]
