"""What does a stall look like to a client that waits, and to one that keeps its schedule?

A simulated server: one request at a time, first come first served, known service times, and pauses
during which nothing moves. Time is virtual, so nothing sleeps and a run repeats exactly; traces are
labelled `emulated`.
Chapter: chapters/01_metrics.md  Lab: labs/01_metrics.ipynb

Two clients send the same workload. `open` sends each request when it is due. `waiting` has one
request in flight and sends the next when it is due and the last answer is complete, as a loop
around a blocking call does. During a stall it sends nothing, so its send-to-answer times hold one
slow request where its users would have had many: coordinated omission. Both clients keep the due
time as `scheduled`: `metrics.ttft_s` is the same for both, `metrics.ttft_from_sent_s` is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inferlab.backends.base import BackendRun
from inferlab.errors import UserError
from inferlab.models.config import ModelConfig, get_config
from inferlab.trace import Request, Trace
from inferlab.workload import Workload

CLIENTS = ("open", "waiting")


def serve(
    workload: Workload,
    service_s: float | Sequence[float],
    stalls: Sequence[tuple[float, float]] = (),
    client: str = "open",
) -> Trace:
    """The trace of a single first-come-first-served server in virtual time.

    `service_s` is the undisturbed time of a request, one for all or one each; its `output_len`
    tokens come at equal steps of that time, the last at its end. `stalls` are (start, duration) in
    seconds, in order and apart from each other; work in progress stands still meanwhile. Raises
    UserError for values that no server can have.
    """
    if client not in CLIENTS:
        raise UserError(f"unknown client {str(client)[:40]!r}; known: {', '.join(CLIENTS)}")
    services = _service_times(service_s, workload.batch_size)
    _check_stalls(stalls)
    requests = []
    free_s = 0.0  # when the server has finished all that came before
    for spec, service in zip(workload.requests, services, strict=True):
        sent = spec.scheduled if client == "open" else max(spec.scheduled, free_s)
        begin = max(sent, free_s)
        steps = range(1, spec.output_len + 1)
        events = tuple((_after(begin, service * k / spec.output_len, stalls), 1) for k in steps)
        requests.append(Request(spec.id, spec.scheduled, sent, spec.prompt_len, events))
        free_s = events[-1][0]
    meta = {
        "label": "emulated",
        "backend": "stall",
        "client": client,
        "stalls_s": [list(stall) for stall in stalls],
        "seed": int(workload.seed),
    }
    return Trace(tuple(requests), meta)


@dataclass(frozen=True, slots=True)
class StallBackend:
    """`serve` behind the interface of a backend; the model only lends its name."""

    config: ModelConfig
    dtype: str
    service_s: float
    stalls: tuple[tuple[float, float], ...]
    client: str
    name: str = "stall"

    def run(self, workload: Workload) -> BackendRun:
        """The trace; every token id is 0, because nothing is computed."""
        trace = serve(workload, self.service_s, self.stalls, self.client)
        return BackendRun(trace, [[0] * spec.output_len for spec in workload.requests])


def load(
    model: str | ModelConfig,
    dtype: str = "bfloat16",
    device: str = "cpu",
    service_s: float = 0.05,
    stalls: Sequence[tuple[float, float]] = (),
    client: str = "open",
) -> StallBackend:
    """A stalling server; dtype and device are accepted and change nothing."""
    config = model if isinstance(model, ModelConfig) else get_config(model)
    return StallBackend(config, dtype, service_s, tuple(map(tuple, stalls)), client)


def _after(begin_s: float, work_s: float, stalls: Sequence[tuple[float, float]]) -> float:
    """When `work_s` seconds of work are done that begin at `begin_s`, stalls not counted."""
    now = begin_s
    for start, duration in stalls:
        end = start + duration
        if end <= now:
            continue
        if now + work_s <= start:
            break
        if now < start:
            work_s -= start - now
        now = end
    return now + work_s


def _service_times(service_s: float | Sequence[float], count: int) -> list[float]:
    try:
        times = [float(service_s)] * count
    except TypeError:
        times = [float(value) for value in service_s]
    if len(times) != count:
        raise UserError(f"{count} requests need as many service times, not {len(times)}")
    if not all(math.isfinite(value) and value > 0 for value in times):
        raise UserError("service times must be finite numbers of seconds above zero")
    return times


def _check_stalls(stalls: Sequence[tuple[float, float]]) -> None:
    previous_end = 0.0
    for start, duration in stalls:
        if not (math.isfinite(start) and math.isfinite(duration) and duration > 0):
            raise UserError("a stall is (start, duration) in finite seconds, duration above zero")
        if start < previous_end:
            raise UserError("stalls must start at 0 s or later, in order, and not overlap")
        previous_end = start + duration
