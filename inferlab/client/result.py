"""What came of a run: requests as a trace, the client's verdict on itself, doubts about tokens.

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from inferlab.client.flight import Flight
from inferlab.client.honesty import Limits, Verdict, Watch, judge
from inferlab.client.target import Target
from inferlab.trace import Trace
from inferlab.workload import Workload

MOST_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class LoadRun:
    """The trace (partial when the run was interrupted), what was said, and the verdict.

    `token_ids` and `texts` go with the requests of the trace; ids are empty where the server sends
    none.
    """

    trace: Trace
    token_ids: list[list[int]]
    texts: list[str]
    verdict: Verdict
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What the client's thread leaves behind; `start` is time 0 of the run on perf_counter."""

    target: Target
    workload: Workload
    concurrency: int | None
    flights: list[Flight]
    start: float
    watch: Watch
    wall_s: float
    cpu_s: float
    idle_s: float  # of the users of a closed loop, and what they waited for answers
    waiting_s: float
    clock_steps: int
    has_precedence: bool
    kernel_stamps: bool


def load_run(
    record: Record, interrupted: bool, limits: Limits | None, meta: dict[str, Any]
) -> LoadRun:
    """Everything as a trace. No address of the server is in it."""
    flights = record.flights
    users_s = record.idle_s + record.waiting_s if record.concurrency else 0.0
    verdict = judge(
        [flight.sent - flight.due for flight in flights],
        record.watch,
        record.wall_s,
        record.cpu_s,
        sum(len(flight.answer.arrivals) for flight in flights),
        record.clock_steps,
        record.idle_s / users_s if users_s else 0.0,
        _stamped_gap_s(flights) if record.kernel_stamps else None,
        limits,
    )
    pairs = [flight.request(record.start) for flight in flights]
    sources = Counter(counted.source for request, counted in pairs if request.status == "ok")
    differing = [
        [request.id, request.output_tokens, counted.usage_tokens]
        for request, counted in pairs
        if counted.disagrees
    ]
    short = sum(
        request.status == "ok" and request.output_tokens < flight.spec.output_len
        for (request, _), flight in zip(pairs, flights, strict=True)
    )
    trace = Trace(
        tuple(request for request, _ in pairs),
        {
            "label": "measured",
            "backend": "http",
            "api": record.target.api,
            "model": record.target.model,
            "loop": "open" if record.concurrency is None else "closed",
            "concurrency": record.concurrency,
            "seed": int(record.workload.seed),
            "interrupted": interrupted,
            "unsent": record.workload.batch_size - len(flights),
            "resent": sum(flight.was_resent for flight in flights),
            "short_answers": short,
            "tokens_from": dict(sorted(sources.items())),
            "usage_disagrees": len(differing),
            "usage_examples": differing[:MOST_EXAMPLES],  # id, tokens counted, usage
            "arrival_times": "kernel" if record.kernel_stamps else "read",
            "client": verdict.to_dict(),
            "client_has_precedence": record.has_precedence,
            **meta,
        },
    )
    ids = [[token for c in f.answer.chunks for token in c.token_ids or ()] for f in flights]
    return LoadRun(trace, ids, [f.answer.text() for f in flights], verdict, interrupted)


def _stamped_gap_s(flights: Sequence[Flight]) -> float:
    """Median over the answers of their mean gap between chunks; inf where no answer has a gap.

    The mean of an answer stays what it is when some of its chunks share a stamp.
    """
    arrivals = [flight.answer.arrivals for flight in flights]
    gaps = [(times[-1] - times[0]) / (len(times) - 1) for times in arrivals if len(times) > 1]
    return median(gaps) if gaps else float("inf")
