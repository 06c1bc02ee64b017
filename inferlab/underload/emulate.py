"""What would clients of an engine see, if its steps took exactly the time of two straight lines?

The scheduler is the real one; only time is imposed (`StepModel`), and everything runs in virtual
time, so a run of minutes takes milliseconds. Traces are labelled emulated: they are the prediction
that lab 46 measures against, tails included.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from inferlab.continuous.emulate import take
from inferlab.errors import UserError
from inferlab.kvcache.blocks import BlockManager
from inferlab.lengths import Lengths
from inferlab.metrics import SLO, summarize
from inferlab.serving.scheduler import Scheduler, StepPlan
from inferlab.serving.sequence import Sequence
from inferlab.trace import Request, Trace
from inferlab.underload.cost import StepModel
from inferlab.workload import poisson_times


@dataclass(frozen=True, slots=True)
class EmulatedServer:
    """An engine by its scheduler's settings and the time of its steps."""

    model: StepModel
    max_num_seqs: int
    cache_tokens: int
    max_num_batched_tokens: int = 2048
    chunk_size: int | None = None
    block_size: int = 16

    def open_loop(self, lengths: Seq[Lengths], times_s: Seq[float]) -> Trace:
        """Requests of these lengths, each sent at its time in seconds."""
        if len(lengths) != len(times_s) or not lengths:
            raise UserError(f"{len(lengths)} lengths need as many times, not {len(times_s)}")
        return self._run(lengths, list(zip(times_s, range(len(lengths)), strict=True)))

    def closed_loop(self, lengths: Seq[Lengths], concurrency: int) -> Trace:
        """The same requests from `concurrency` clients, each asking again once it is answered."""
        if concurrency < 1 or not lengths:
            raise UserError("a closed loop needs a request and a client at least")
        first = [(0.0, index) for index in range(min(concurrency, len(lengths)))]
        return self._run(lengths, first, closed=True)

    def max_rate(
        self, lengths: Seq[Lengths], slo: SLO, good_ratio: float, above_req_per_s: float,
        seed: int = 0,
    ) -> float:  # fmt: skip
        """Largest Poisson rate at which `good_ratio` of the requests meet `slo`, by bisection.

        `above_req_per_s` must fail; 0 when even a thousandth of it does.
        """
        low, high = above_req_per_s / 1000, above_req_per_s

        def meets(rate: float) -> bool:
            trace = self.open_loop(lengths, poisson_times(len(lengths), rate, seed))
            return summarize(trace, slo).goodput.attainment_ratio >= good_ratio

        if not meets(low):
            return 0.0
        while high > 1.01 * low:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if meets(middle) else (low, middle)
        return low

    def step_s(self, plan: StepPlan) -> float:
        """Seconds of one step: prompts and tokens of a mixed step share its fixed part."""
        read = sum(s.num_tokens for s in plan.segments if not s.seq.is_decoding)
        rows = sum(s.seq.is_decoding for s in plan.segments)
        if rows:
            return self.model.step_s(rows) + self.model.token_s * read
        return self.model.read_s(read)

    def _run(
        self, lengths: Seq[Lengths], due: list[tuple[float, int]], closed: bool = False
    ) -> Trace:
        longest = max(one.prompt_len + one.output_len for one in lengths)
        manager = BlockManager(self.cache_tokens // self.block_size, self.block_size)
        scheduler = Scheduler(
            manager, self.max_num_seqs, max(self.max_num_batched_tokens, self.max_num_seqs),
            longest, self.chunk_size,
        )  # fmt: skip
        heapq.heapify(due)
        sent: dict[str, float] = {}
        events: dict[str, list[tuple[float, int]]] = {}
        now, upcoming = 0.0, len(due)
        while due or scheduler.num_running or scheduler.num_waiting:
            if not (scheduler.num_running or scheduler.num_waiting):
                now = max(now, due[0][0])
            while due and due[0][0] <= now:
                time_s, index = heapq.heappop(due)
                name = f"r{index:05d}"
                sent[name], events[name] = time_s, []
                one = lengths[index]
                scheduler.add(Sequence(name, [0] * one.prompt_len, one.output_len))
            plan = scheduler.schedule()
            now += self.step_s(plan)
            for name in take(scheduler, plan):
                events[name].append((now, 1))
                is_done = len(events[name]) == lengths[int(name[1:])].output_len
                if is_done and closed and upcoming < len(lengths):
                    heapq.heappush(due, (now, upcoming))
                    upcoming += 1
        requests = tuple(
            Request(name, sent[name], sent[name], lengths[int(name[1:])].prompt_len,
                    tuple(events[name]))
            for name in sorted(sent)
        )  # fmt: skip
        return Trace(requests, {"label": "emulated", "max_num_seqs": self.max_num_seqs})
