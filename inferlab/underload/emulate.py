"""What would clients of an engine see, if its steps took exactly the time of two straight lines?

The scheduler is the real one; only time is imposed (`StepModel`), and everything runs in virtual
time, so a run of minutes takes milliseconds. Traces are labelled emulated: they are the prediction
that lab 46 measures against, tails included.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from inferlab.continuous.emulate import drive
from inferlab.errors import UserError
from inferlab.kvcache.blocks import BlockManager
from inferlab.lengths import Lengths
from inferlab.metrics import SLO, summarize
from inferlab.serving.scheduler import Scheduler, StepPlan
from inferlab.trace import Trace
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
        """Requests of these lengths, each sent at its time in seconds; times are in order."""
        if len(lengths) != len(times_s) or not lengths or sorted(times_s) != list(times_s):
            raise UserError(f"{len(lengths)} lengths need as many times, in order: {len(times_s)}")
        return self._trace(lengths, times_s)

    def closed_loop(self, lengths: Seq[Lengths], concurrency: int) -> Trace:
        """The same requests from `concurrency` clients, each asking again once it is answered."""
        if concurrency < 1 or not lengths:
            raise UserError("a closed loop needs a request and a client at least")
        return self._trace(lengths, [0.0] * min(concurrency, len(lengths)))

    def attainment_ratio(
        self, lengths: Seq[Lengths], rate_req_per_s: float, slo: SLO, seed: int = 0
    ) -> float:
        """Share of the requests that meet `slo` when they come at a Poisson rate."""
        trace = self.open_loop(lengths, poisson_times(len(lengths), rate_req_per_s, seed))
        return summarize(trace, slo).goodput.attainment_ratio

    def max_rate(
        self, lengths: Seq[Lengths], slo: SLO, good_ratio: float, above_req_per_s: float,
        seed: int = 0,
    ) -> float:  # fmt: skip
        """Largest Poisson rate at which `good_ratio` of the requests meet `slo`, by bisection.

        `above_req_per_s` must fail; 0 when even a thousandth of it does.
        """
        low, high = above_req_per_s / 1000, above_req_per_s

        def meets(rate: float) -> bool:
            return self.attainment_ratio(lengths, rate, slo, seed) >= good_ratio

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

    def _trace(self, lengths: Seq[Lengths], sent_s: Seq[float]) -> Trace:
        scheduler = Scheduler(
            BlockManager(self.cache_tokens // self.block_size, self.block_size),
            self.max_num_seqs,
            max(self.max_num_batched_tokens, self.max_num_seqs),
            max(one.prompt_len + one.output_len for one in lengths),
            self.chunk_size,
        )
        meta = {"label": "emulated", "max_num_seqs": self.max_num_seqs}
        return drive(scheduler, lengths, self.step_s, sent_s, meta).trace
