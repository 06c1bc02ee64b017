"""May the times of this run be trusted: was the client on time, and did it have time to spare?

A client that is late blames the server. So every run carries its own judgement, and one that fails
it is void:

- **Late sends.** A send is late when it left more than `late_s` after it was due. The limit is
  that of the calibration: an error of up to 2 ms is allowed in one of a hundred times. A run with
  more than 1 % late sends has a p99 of its send error above that. One single late send voids no
  run: of fewer than a hundred it is no share yet.
- **Idle users.** A closed loop has no times that requests could miss: a request is due when it is
  sent. There the client can only leave its users idle between an answer and the next request, and
  less load is on the server than was said. Above 1 % of the users' time the run is void.
- **A busy client.** The share of one core that the client's thread used, over the run and in its
  busiest second. A single server's queue is short below half load and grows without bound near
  full load.
- **Lag.** A timer that should fire every 10 ms says how late the event loop was. An arrival that
  is stamped when it is read is late by as much: there the limit is that of late sends, for one
  tick in a hundred. Where the kernel stamps arrivals, lag bends nothing until it is as long as
  the gap between two chunks: both are then read at once and share a stamp.

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TICK_S = 0.010
WINDOW_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Above which the client is not trusted; see the module."""

    late_s: float = 2e-3
    late_ratio: float = 0.01
    idle_ratio: float = 0.01
    cpu_ratio: float = 0.6
    busiest_cpu_ratio: float = 0.9


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run counts, why not, and the figures behind it.

    `late_ratio` is the share of late sends, `idle_ratio` the share of the users' time of a closed
    loop in which the client kept them waiting, `cpu_ratio` the client's share of one core and
    `busiest_cpu_ratio` that of its busiest second (None for a run shorter than that).
    """

    valid: bool
    reasons: tuple[str, ...]
    sends: int
    late_sends: int
    late_ratio: float
    idle_ratio: float
    send_delay_p99_s: float
    send_delay_max_s: float
    lag_median_s: float
    lag_p99_s: float
    lag_max_s: float
    cpu_ratio: float
    busiest_cpu_ratio: float | None
    events: int
    events_per_s: float
    clock_steps: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; it goes into the trace's meta as "client"."""
        return {**asdict(self), "reasons": list(self.reasons)}


class Watch:
    """Looks after the client's own thread during a run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, resync) -> None:
        self.lags_s: list[float] = []
        self.cpu_ratios: list[float] = []  # one a window
        self._loop, self._resync = loop, resync
        self._start = self._window_start = loop.time()
        self._cpu_start = self._window_cpu = time.thread_time()
        self._due = self._start + TICK_S
        self._timer = loop.call_at(self._due, self._tick)

    def stop(self) -> tuple[float, float]:
        """End it: (wall seconds, CPU seconds of this thread) since it began."""
        self._timer.cancel()
        return self._loop.time() - self._start, time.thread_time() - self._cpu_start

    def _tick(self) -> None:
        now = self._loop.time()
        self.lags_s.append(now - self._due)
        if now - self._window_start >= WINDOW_S:
            cpu = time.thread_time()
            self.cpu_ratios.append((cpu - self._window_cpu) / (now - self._window_start))
            self._window_start, self._window_cpu = now, cpu
            self._resync()
        self._due = max(self._due, now - TICK_S) + TICK_S
        self._timer = self._loop.call_at(self._due, self._tick)


def judge(
    delays_s: Sequence[float],
    watch: Watch,
    wall_s: float,
    cpu_s: float,
    events: int,
    clock_steps: int = 0,
    idle_ratio: float = 0.0,
    stamped_gap_s: float | None = None,
    limits: Limits | None = None,
) -> Verdict:
    """The verdict on a run: `delays_s` [sends] is how long after it was due each request left.

    `stamped_gap_s` is the usual gap between chunks where the kernel stamped them; None for times
    of reads.
    """
    limits = limits or Limits()
    late = sum(delay > limits.late_s for delay in delays_s)
    late_ratio = late / len(delays_s) if delays_s else 0.0
    cpu_ratio = cpu_s / wall_s if wall_s > 0 else 0.0
    busiest = max(watch.cpu_ratios, default=None)
    reasons = []
    if late > 1 and late_ratio > limits.late_ratio:
        reasons.append(
            f"{late} of {len(delays_s)} requests left more than {limits.late_s * 1e3:g} ms after "
            f"they were due, above {limits.late_ratio:.0%}: the machine is too busy for the client"
        )
    if idle_ratio > limits.idle_ratio:
        reasons.append(
            f"users were idle for {idle_ratio:.1%} of their time, above {limits.idle_ratio:.0%}: "
            "the client is too slow for that many of them"
        )
    lag_limit_s = max(limits.late_s, stamped_gap_s or 0.0)
    lagging = sum(lag > lag_limit_s for lag in watch.lags_s)
    if lagging > 1 and lagging > limits.late_ratio * len(watch.lags_s):
        why = "arrivals are stamped when they are read"
        if stamped_gap_s is not None:
            why = "chunks that arrived one after the other share a stamp"
        reasons.append(
            f"the client lagged more than {lag_limit_s * 1e3:.3g} ms behind in {lagging} of "
            f"{len(watch.lags_s)} ticks, above {limits.late_ratio:.0%}: {why}"
        )
    if cpu_ratio > limits.cpu_ratio and wall_s >= WINDOW_S:
        reasons.append(
            f"the client used {cpu_ratio:.0%} of a core, above {limits.cpu_ratio:.0%}: it "
            "measures itself"
        )
    elif busiest is not None and busiest > limits.busiest_cpu_ratio:
        reasons.append(
            f"the client used {busiest:.0%} of a core in its busiest second, above "
            f"{limits.busiest_cpu_ratio:.0%}"
        )
    if clock_steps:
        reasons.append("the system's clock was set during the run: arrival times jump with it")
    return Verdict(
        valid=not reasons,
        reasons=tuple(reasons),
        sends=len(delays_s),
        late_sends=late,
        late_ratio=late_ratio,
        idle_ratio=idle_ratio,
        send_delay_p99_s=_quantile(delays_s, 99),
        send_delay_max_s=max(delays_s, default=0.0),
        lag_median_s=_quantile(watch.lags_s, 50),
        lag_p99_s=_quantile(watch.lags_s, 99),
        lag_max_s=max(watch.lags_s, default=0.0),
        cpu_ratio=cpu_ratio,
        busiest_cpu_ratio=busiest,
        events=events,
        events_per_s=events / wall_s if wall_s > 0 else 0.0,
        clock_steps=clock_steps,
    )


def take_precedence() -> bool:
    """Let the calling thread run before all others, where the system allows that to this user.

    The client needs little of a core but needs it at once, also when the server beside it keeps
    every core busy: a plain thread then waits for the end of a time slice, some 3 ms on Linux. A
    real-time priority, the lowest, ends with the thread. Returns whether it was granted.
    """
    try:
        priority = os.sched_param(os.sched_get_priority_min(os.SCHED_RR))
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, priority)
    except (OSError, AttributeError):  # not this user; not on this system
        return False
    return True


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection, and other threads give way within 0.2 ms, while this lasts."""
    was_enabled, interval = gc.isenabled(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.setswitchinterval(2e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _quantile(values: Sequence[float], q: float) -> float:
    # A description of the client, not a result: no minimum number of values is asked.
    return float(np.percentile(values, q)) if len(values) else 0.0
