"""How far are the client's times from the truth, and up to how many events a second?

The truth is the log of a server with known delays (`mockserver`): it reads the clock before it
writes a chunk, the client is told when the chunk arrived, and on one machine both read one clock
(CLOCK_MONOTONIC). A request's TTFT is held against first write - arrival of the request, an ITL
against the gap of the two writes. The way through the kernel is inside the error.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inferlab.client.drive import drive
from inferlab.client.mock import Log, MockServer
from inferlab.client.target import Target
from inferlab.errors import MeasurementError, UserError
from inferlab.metrics import token_events
from inferlab.stats import NotEnoughSamples, percentile
from inferlab.trace import Trace
from inferlab.workload import uniform_batch

MEDIAN_BOUND_S = 1e-3
P99_BOUND_S = 2e-3
KEPT_UP_RATIO = 0.9  # of the events a second that were asked for: below it, the server fell behind
RATES_PER_S = (2_000, 5_000, 10_000, 15_000, 20_000, 30_000, 40_000, 60_000)


@dataclass(frozen=True, slots=True)
class Errors:
    """Absolute errors in seconds; `p99_s` is None where there are too few for one."""

    count: int
    median_s: float
    p99_s: float | None
    max_s: float

    @property
    def within_bounds(self) -> bool:
        """Median and p99 (where there are too few: the maximum) within the bounds of this module.

        A p99 needs 459 values; the maximum of fewer is the stricter demand.
        """
        tail = self.max_s if self.p99_s is None else self.p99_s
        return self.median_s <= MEDIAN_BOUND_S and tail <= P99_BOUND_S


@dataclass(frozen=True, slots=True)
class CalibrationPoint:
    """The client against the log: `streams` at once, `events_per_s` while they ran."""

    streams: int
    asked_events_per_s: float
    events_per_s: float
    ttft: Errors
    itl: Errors
    cpu_ratio: float
    late_ratio: float
    valid: bool

    @property
    def within_bounds(self) -> bool:
        """Whether the client was within the bounds and would have called the run valid."""
        return self.valid and self.ttft.within_bounds and self.itl.within_bounds

    @property
    def server_kept_up(self) -> bool:
        """Whether the mock server wrote as fast as it was asked to."""
        return self.events_per_s >= KEPT_UP_RATIO * self.asked_events_per_s

    def metrics(self) -> dict[str, float]:
        """As metrics of a record."""
        found: dict[str, float | None] = {
            "events_per_s": self.events_per_s,
            "client_cpu_ratio": self.cpu_ratio,
            "late_ratio": self.late_ratio,
        }
        for name, errors in (("ttft_error", self.ttft), ("itl_error", self.itl)):
            found |= {f"{name}_median_s": errors.median_s, f"{name}_p99_s": errors.p99_s}
            found[f"{name}_max_s"] = errors.max_s
        return {name: float(value) for name, value in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "within_bounds": self.within_bounds}


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest event rate within the bounds (None: not even the lowest was), and all that were
    tried."""

    events_per_s: float | None
    points: tuple[CalibrationPoint, ...]


def calibrate(
    streams: int,
    itl_s: float = 0.02,
    output_len: int = 32,
    requests: int | None = None,
    ttft_s: float = 0.05,
    aligned: bool = True,
    kernel_stamps: bool = True,
) -> CalibrationPoint:
    """`streams` streams at once against a mock server, `requests` of them in all (as many).

    `aligned` has all streams written at the same moments, in one burst a step, as a batching server
    does: the hardest case for a client. 459 requests or more give TTFT a p99. `kernel_stamps` as in
    `drive`.
    """
    if streams < 1 or output_len < 2:
        raise UserError("a calibration needs 1 stream or more, of 2 tokens or more")
    workload = uniform_batch(1000, max(streams, requests or streams), 16, output_len)
    with MockServer(ttft_s=ttft_s, itl_s=itl_s, aligned=aligned) as server:
        # once around first: connections are open, code is warm
        drive(Target(server.url, "mock"), uniform_batch(1000, streams, 16, 2), concurrency=streams)
        server.log()
        run = drive(
            Target(server.url, "mock"), workload, concurrency=streams, kernel_stamps=kernel_stamps
        )
        log = server.log()
    ttft, itl = errors_against(run.trace, log)
    return CalibrationPoint(
        streams=streams,
        asked_events_per_s=streams / itl_s,
        events_per_s=_events_per_s(log, streams),
        ttft=_errors(ttft),
        itl=_errors(itl),
        cpu_ratio=run.verdict.cpu_ratio,
        late_ratio=run.verdict.late_ratio,
        valid=run.verdict.valid,
    )


def errors_against(trace: Trace, log: Mapping[str, Log]) -> tuple[np.ndarray, np.ndarray]:
    """Signed errors in seconds of TTFT [requests] and ITL [gaps]: the client's minus the server's.

    Raises MeasurementError when a request failed or its chunks are not those of the log.
    """
    ttft, itl = [], []
    for request in trace.requests:
        events, entry = token_events(request), log.get(request.id)
        if request.status != "ok" or entry is None or len(events) != len(entry.writes):
            raise MeasurementError(
                f"calibration: request {request.id} is {request.status} with {len(events)} events "
                f"({request.error})"
            )
        arrivals = np.array([time for time, _ in events])
        writes = np.array(entry.writes)
        ttft.append((arrivals[0] - request.sent) - (writes[0] - entry.received))
        itl.append(np.diff(arrivals) - np.diff(writes))
    return np.array(ttft), np.concatenate(itl)


def find_capacity(
    streams: int = 200, rates_per_s: Sequence[float] = RATES_PER_S, seconds: float = 1.5
) -> Capacity:
    """Raise the event rate of `streams` streams until the client leaves the bounds, or the mock
    server falls behind."""
    best, points = None, []
    for rate in rates_per_s:
        itl_s = streams / rate
        output_len = max(2, math.ceil(seconds / itl_s))
        point = calibrate(streams, itl_s, output_len)
        points.append(point)
        if not (point.server_kept_up and point.within_bounds):
            break
        best = point.events_per_s
    return Capacity(best, tuple(points))


def _errors(signed_s: np.ndarray) -> Errors:
    absolute = np.abs(signed_s)
    try:
        p99 = percentile(absolute, 99)
    except NotEnoughSamples:
        p99 = None
    return Errors(absolute.size, float(np.median(absolute)), p99, float(absolute.max()))


def _events_per_s(log: Mapping[str, Log], streams: int) -> float:
    """Events a second while the streams ran: each brings one a gap, and a gap lasts so long."""
    gaps = np.concatenate([np.diff(entry.writes) for entry in log.values()])
    return streams / float(gaps.mean())
