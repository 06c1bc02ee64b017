"""How much of a server's stall does a client that waits for answers leave out?

Requests arrive at a known mean rate, at random or at an even pace; the server needs the same time
for each and stands still once. Everything runs in virtual time (`backends.stall`), so all values
here are emulated.
Chapter: chapters/01_metrics.md    Lab: labs/01_metrics.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass

from inferlab.backends.stall import serve
from inferlab.errors import UserError
from inferlab.trace import Trace
from inferlab.workload import (
    Workload,
    constant_times,
    poisson_arrivals,
    scheduled_at,
    uniform_batch,
)

PROMPT_LEN, VOCAB_SIZE = 4, 100  # no model reads the prompts


@dataclass(frozen=True, slots=True)
class StallScenario:
    """One stall of `stall_s` seconds in an otherwise steady stream of requests."""

    num_requests: int = 1000
    rate_req_per_s: float = 10.0
    service_s: float = 0.04
    output_len: int = 8
    stall_start_s: float = 50.0
    stall_s: float = 2.0
    seed: int = 1
    even_pace: bool = False  # arrivals by a metronome instead of at random

    def __post_init__(self) -> None:
        if not self.load_ratio < 1:
            raise UserError(
                f"the server is asked for {self.load_ratio:.2f} of its capacity: its queue grows "
                "without end, lower the rate or the service time"
            )

    @property
    def load_ratio(self) -> float:
        """Share of the time that the server is busy."""
        return self.rate_req_per_s * self.service_s

    @property
    def undisturbed_ttft_s(self) -> float:
        """First token of a request that finds the server free."""
        return self.service_s / self.output_len

    @property
    def delayed_requests(self) -> float:
        """Requests that the stall delays: those due during it, and until its queue is drained."""
        return self.rate_req_per_s * self.stall_s / (1 - self.load_ratio)

    def workload(self) -> Workload:
        """The requests with their due times."""
        batch = uniform_batch(VOCAB_SIZE, self.num_requests, PROMPT_LEN, self.output_len, self.seed)
        if self.even_pace:
            times_s = constant_times(self.num_requests, self.rate_req_per_s)
            return scheduled_at(batch, times_s)
        return poisson_arrivals(batch, self.rate_req_per_s)

    def run(self, client: str) -> Trace:
        """The log that the `open` or the `waiting` client writes."""
        stalls = [(self.stall_start_s, self.stall_s)] if self.stall_s > 0 else []
        return serve(self.workload(), self.service_s, stalls, client)

    def predicted_ttft_s(self, q: float) -> float:
        """The q-th percentile of TTFT from the due time, requests taken as a steady flow.

        The wait falls in a line from the whole stall, for the request that is due at its start, to
        nothing for the last one that it delays. Ordinary queueing is left out, so small values are
        too small.
        """
        beyond = (1 - q / 100) * self.num_requests  # requests above the percentile
        share = beyond / self.delayed_requests if self.stall_s else 1.0
        wait_s = self.stall_s * max(0.0, 1 - share)
        return wait_s + self.undisturbed_ttft_s

    def longest_hidden_stall_s(self, q: float) -> float:
        """The longest stall that leaves the q-th percentile alone: it delays too few requests."""
        return (1 - q / 100) * self.num_requests * (1 - self.load_ratio) / self.rate_req_per_s
