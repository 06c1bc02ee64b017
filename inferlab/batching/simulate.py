"""What would a server of batches have done, if its steps took what was measured?

An emulation in virtual time with simpy: the same line and the same policies as the real server
(`inferlab.serving.batcher`), fed with step times. Traces are labelled `emulated`; nothing sleeps.
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inferlab.errors import UserError
from inferlab.serving.batcher import Batcher, BatchPolicy
from inferlab.serving.waits import (
    ServedBatch,
    batches_meta,
    check_prefill,
    policy_meta,
    served_request,
    waits_s,
)
from inferlab.trace import Request, Trace
from inferlab.workload import RequestSpec, Workload, poisson_arrivals

if TYPE_CHECKING:
    import simpy

INTERVAL = (2.5, 97.5)  # percent of runs that lie between


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a prefill by its tokens, padding included, and of a decode step by its rows.

    Between measured sizes a straight line, beyond them the line of the last two.
    """

    prefill_s: Mapping[int, float]
    step_s: Mapping[int, float]

    def __post_init__(self) -> None:
        for what in (self.prefill_s, self.step_s):
            if len(what) < 2 or min(what) < 1 or not all(0 < s < 1e6 for s in what.values()):
                raise UserError("step times need two sizes of at least 1, each with its seconds")

    def prefill_at(self, num_tokens: int) -> float:
        """Seconds to read prompts of so many tokens together."""
        return _between(self.prefill_s, num_tokens)

    def step_at(self, batch_size: int) -> float:
        """Seconds of a step of `batch_size` rows."""
        return _between(self.step_s, batch_size)

    def ends_s(self, batch: Sequence[RequestSpec], prefill: str = "padded") -> list[float]:
        """When each step of a batch ends, from its start: the prefill gives the first token."""
        lengths = [spec.prompt_len for spec in batch]
        tokens = max(lengths) * len(batch) if prefill == "padded" else sum(lengths)
        first, step = self.prefill_at(tokens), self.step_at(len(batch))
        return [first + i * step for i in range(max(spec.output_len for spec in batch))]

    def service_s(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        """Seconds of a batch of equal requests."""
        steps_s = (output_len - 1) * self.step_at(batch_size)
        return self.prefill_at(batch_size * prompt_len) + steps_s


def _between(table: Mapping[int, float], size: float) -> float:
    sizes = sorted(table)
    place = min(max(int(np.searchsorted(sizes, size)), 1), len(sizes) - 1)
    low, high = sizes[place - 1], sizes[place]
    slope = (table[high] - table[low]) / (high - low)
    return max(table[low] + slope * (size - low), 1e-9)


def simulate(
    workload: Workload, policy: BatchPolicy, times: StepTimes, prefill: str = "padded"
) -> Trace:
    """The trace of a server of batches with those step times; requests come when they are due."""
    import simpy

    if not workload.requests:
        raise UserError("the workload has no requests")
    check_prefill(prefill)
    world = simpy.Environment()
    server = _Server(world, policy, times, prefill, len(workload.requests))
    world.process(server.arrivals(workload.requests))
    world.process(server.serving())
    world.run()
    meta = {
        "label": "emulated", "backend": "simulate", **policy_meta(policy),
        "prefill": prefill, "batches": batches_meta(server.batches), "seed": int(workload.seed),
    }  # fmt: skip
    return Trace(tuple(server.served), meta)


class _Server:
    """One process lets requests in, the other serves batches of them."""

    def __init__(
        self, world: simpy.Environment, policy: BatchPolicy, times: StepTimes, prefill: str,
        num_requests: int,
    ) -> None:  # fmt: skip
        self.world, self.times, self.prefill = world, times, prefill
        self.batcher: Batcher[RequestSpec] = Batcher(policy)
        self.to_come = num_requests
        self.arrived = world.event()
        self.batches: list[ServedBatch] = []
        self.served: list[Request] = []

    def arrivals(self, requests: Sequence[RequestSpec]) -> Generator[Any, Any, None]:
        for spec in requests:
            yield self.world.timeout(max(0.0, spec.scheduled - self.world.now))
            self.batcher.add(spec, spec.scheduled)
            self.to_come -= 1
            self.arrived.succeed()
            self.arrived = self.world.event()

    def serving(self) -> Generator[Any, Any, None]:
        while self.to_come or self.batcher.num_waiting:
            start_s = self.world.now
            batch = self.batcher.take(start_s, bool(self.to_come))
            if not batch:
                yield self._something()
                continue
            ends_s = [start_s + end_s for end_s in self.times.ends_s(batch, self.prefill)]
            self.served += [served_request(spec, ends_s) for spec in batch]
            self.batches.append(ServedBatch(start_s, ends_s[-1], len(batch)))
            yield self.world.timeout(ends_s[-1] - start_s)

    def _something(self) -> simpy.Event:
        """The next arrival, or the end of the wait that the policy allows."""
        due_s = self.batcher.due_s()
        if due_s is None:
            return self.arrived
        # At least a tick: a time that rounds to now would never come.
        delay_s = max(due_s - self.world.now, 1e-9)
        return self.arrived | self.world.timeout(delay_s)


def mean_wait_range_s(
    workload: Workload, rate_req_per_s: float, policy: BatchPolicy, times: StepTimes,
    runs: int = 100, prefill: str = "padded",
) -> tuple[float, float]:  # fmt: skip
    """Where the mean wait of a run as short as `workload` lies, for 95 % of Poisson arrivals.

    Theory speaks of runs without end; a short one starts with an empty line and sees few gaps.
    """
    if runs < 2:
        raise UserError(f"a range needs at least 2 runs, not {runs!r}")
    drawn = (poisson_arrivals(workload, rate_req_per_s, 10_000 + seed) for seed in range(runs))
    means = [statistics.fmean(waits_s(simulate(due, policy, times, prefill))) for due in drawn]
    low, high = np.percentile(means, INTERVAL)
    return float(low), float(high)
