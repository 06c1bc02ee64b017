"""The metrics of a whole trace: distributions, throughput, goodput, and all they depend on."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inferlab.errors import UserError
from inferlab.metrics.request import (
    SHORTEST_S,
    SLO,
    e2e_s,
    is_good,
    itl_s,
    token_events,
    tpot_s,
    ttft_from_sent_s,
    ttft_s,
    user_tok_per_s,
)
from inferlab.stats import NotEnoughSamples, percentile
from inferlab.trace import STATUSES, Request, Trace


@dataclass(frozen=True, slots=True)
class Distribution:
    """Summary of one quantity, in its SI unit; None where it is undefined or refused.

    `refused` names the percentiles that the sample is too small for, with the reason.
    """

    count: int
    mean: float | None = None
    median: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    min: float | None = None
    max: float | None = None
    refused: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "refused": dict(self.refused)}


def distribution(values: Iterable[float | None]) -> Distribution:
    """Count, mean, median, p90, p95, p99, min and max of the values that are defined."""
    array = np.array([value for value in values if value is not None], dtype=float)
    if array.size == 0:
        return Distribution(0)
    found: dict[str, float] = {}
    refused = []
    for name, q in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        try:
            found[name] = percentile(array, q)
        except NotEnoughSamples as error:
            refused.append((name, str(error)))
    return Distribution(
        count=array.size,
        mean=float(array.mean()),
        min=float(array.min()),
        max=float(array.max()),
        refused=tuple(refused),
        **found,
    )


@dataclass(frozen=True, slots=True)
class Window:
    """The span of time that throughput divides by, and the rule that chose it."""

    start_s: float
    end_s: float
    rule: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that met the SLO: how many, a second, and as a share of all measured ones."""

    slo: SLO
    good_requests: int
    requests_per_s: float | None
    attainment_ratio: float


@dataclass(frozen=True, slots=True)
class MetricsSummary:
    """What a trace shows, with everything that the numbers depend on."""

    label: str | None
    counts: dict[str, int]
    window: Window
    ttft_s: Distribution
    ttft_from_sent_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    user_tok_per_s: Distribution
    output_tok_per_s: float | None
    requests_per_s: float | None
    goodput: Goodput | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, SI units; undefined quantities are None."""
        distributions = (
            "ttft_s",
            "ttft_from_sent_s",
            "tpot_s",
            "itl_s",
            "e2e_s",
            "user_tok_per_s",
        )
        return {
            "label": self.label,
            "counts": dict(self.counts),
            "window": {**asdict(self.window), "duration_s": self.window.duration_s},
            **{name: getattr(self, name).to_dict() for name in distributions},
            "output_tok_per_s": self.output_tok_per_s,
            "requests_per_s": self.requests_per_s,
            "goodput": None if self.goodput is None else asdict(self.goodput),
        }


def summarize(
    trace: Trace,
    slo: SLO | None = None,
    warmup: int = 0,
    window: tuple[float, float] | None = None,
) -> MetricsSummary:
    """Fold a trace.

    `warmup` drops the first requests by scheduled time, from every number. `window` is (start, end)
    on the trace's clock: latencies and counts are then of the requests scheduled in [start, end),
    and output throughput is of the tokens that completed requests received in [start, end),
    whenever they were scheduled. Without it the window is from the first scheduled time to the last
    event of the measured requests, ramp-up and tail included. Raises UserError when nothing is left
    to measure.
    """
    kept = without_warmup(trace, warmup).requests
    if not kept:
        raise UserError(
            f"nothing to measure: {len(trace.requests)} requests, {warmup} of them left out as "
            "warm-up"
        )
    if window is None:
        span = _whole_run(kept)
        measured = list(kept)
    else:
        span = _stated_window(window)
        measured = [r for r in kept if span.start_s <= r.scheduled < span.end_s]
        if not measured:
            raise UserError("nothing to measure: no request was scheduled inside the window")
    done = [request for request in measured if request.status == "ok"]
    duration_s = span.duration_s
    tokens_in_window = sum(
        tokens
        for request in kept
        if request.status == "ok"
        for time, tokens in request.events
        if window is None or span.start_s <= time < span.end_s
    )
    goodput = None
    if slo is not None:
        good = sum(is_good(request, slo) for request in measured)
        goodput = Goodput(slo, good, _rate(good, duration_s), good / len(measured))
    return MetricsSummary(
        label=label if isinstance(label := trace.meta.get("label"), str) else None,
        counts=_counts(measured, done, warmup),
        window=span,
        ttft_s=distribution(map(ttft_s, done)),
        ttft_from_sent_s=distribution(map(ttft_from_sent_s, done)),
        tpot_s=distribution(map(tpot_s, done)),
        itl_s=distribution(gap for request in done for gap in itl_s(request)),
        e2e_s=distribution(map(e2e_s, done)),
        user_tok_per_s=distribution(map(user_tok_per_s, done)),
        output_tok_per_s=_rate(tokens_in_window, duration_s),
        requests_per_s=_rate(len(done), duration_s),
        goodput=goodput,
    )


def without_warmup(trace: Trace, warmup: int) -> Trace:
    """The trace without its first `warmup` requests by scheduled (then sent) time."""
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise UserError(f"warmup must be a number of requests of at least 0, not {warmup!r}")
    ordered = sorted(trace.requests, key=lambda request: (request.scheduled, request.sent))
    return Trace(tuple(ordered[warmup:]), trace.meta)


def _rate(count: float, duration_s: float) -> float | None:
    return count / duration_s if duration_s > SHORTEST_S else None


def _whole_run(requests: Sequence[Request]) -> Window:
    start = min(request.scheduled for request in requests)
    end = max(request.events[-1][0] if request.events else request.sent for request in requests)
    return Window(start, end, "first scheduled time to last event of the measured requests")


def _stated_window(window: tuple[float, float]) -> Window:
    start, end = window
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise UserError(f"a window needs a start before its end, not {start!r} to {end!r}")
    return Window(float(start), float(end), "stated")


def _counts(measured: Sequence[Request], done: Sequence[Request], warmup: int) -> dict[str, int]:
    """Everything that was left out of a distribution, or that bends its meaning, as a number."""
    statuses = Counter(request.status for request in measured)
    events = [event for request in done for event in request.events]
    return {
        "requests": len(measured),
        "warmup_excluded": warmup,
        **{status: statuses[status] for status in STATUSES},
        "failed": len(measured) - len(done),
        "no_output": sum(request.output_tokens == 0 for request in done),
        "tpot_undefined": sum(request.output_tokens < 2 for request in done),
        "single_event_answers": sum(
            request.output_tokens > 1 and len(token_events(request)) == 1 for request in done
        ),
        "multi_token_events": sum(tokens > 1 for _, tokens in events),
        "empty_events": sum(tokens == 0 for _, tokens in events),
        "prompt_tokens": sum(request.prompt_tokens for request in done),
        "output_tokens": sum(request.output_tokens for request in done),
        "output_tokens_of_failed": sum(
            request.output_tokens for request in measured if request.status != "ok"
        ),
    }
