"""What does a server do under one load: a run, its metrics, and whether it meets an SLO?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from inferlab.client.drive import LoadRun, Progress, drive
from inferlab.client.target import Target
from inferlab.errors import MeasurementError
from inferlab.load.plan import LoadPlan, prepare
from inferlab.metrics import SLO, MetricsSummary, summarize
from inferlab.trace import Trace

WARMUP_CONCURRENCY = 4
_WARMUP_SEED = 987_654_321  # prompts that the measured run does not repeat


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One load and what came of it; `summary` is None when not a single request was sent."""

    plan: LoadPlan
    mix: str
    clipped: int
    run: LoadRun
    summary: MetricsSummary | None

    @property
    def trace(self) -> Trace:
        """The event log."""
        return self.run.trace

    @property
    def interrupted(self) -> bool:
        """Whether the run was ended before its time; its trace is partial."""
        return self.run.interrupted

    @property
    def is_void(self) -> bool:
        """Whether the client may not be trusted (see `run.verdict`)."""
        return not self.run.verdict.valid

    @property
    def all_failed(self) -> bool:
        """Whether no request was answered."""
        return self.summary is None or self.summary.counts["ok"] == 0

    @property
    def offered_req_per_s(self) -> float | None:
        """Requests sent a second, from the first due time to the last; None for fewer than two."""
        due = [request.scheduled for request in self.trace.requests]
        span = max(due) - min(due) if due else 0.0
        return (len(due) - 1) / span if span > 0 else None

    @property
    def ran_out(self) -> bool:
        """Whether a closed loop had sent all requests that were ready before its duration ended."""
        plan = self.plan
        is_timed = plan.concurrency is not None and plan.duration_s is not None
        if not is_timed or plan.num_requests is not None or self.interrupted:
            return False
        last = max((request.sent for request in self.trace.requests), default=0.0)
        return self.trace.meta["unsent"] == 0 and last < plan.duration_s

    def meets(self, goodput_ratio: float) -> bool:
        """Whether at least this share of the requests met every limit of the SLO."""
        if self.summary is None or self.summary.goodput is None:
            return False
        return self.summary.goodput.attainment_ratio >= goodput_ratio

    def first_error(self) -> str:
        """Why the first request that failed did so."""
        errors = [r.error for r in self.trace.requests if r.status != "ok" and r.error]
        first = errors[0] if errors else "no request failed"
        strict = " (does it refuse fields that it does not know? try --no-extensions)"
        return first + strict * first.startswith("HTTP 422")


def run_point(
    target: Target,
    plan: LoadPlan,
    slo: SLO | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> LoadPoint:
    """Send the plan's requests and fold the trace; the plan is in the trace's meta."""
    prepared = prepare(plan)
    # no path of this machine goes into a trace
    settings = {**plan.to_dict(), "lengths": Path(plan.lengths).name}
    settings = {key: settings[key] for key in settings if key not in ("model", "tokenizer")}
    run = drive(
        target,
        prepared.workload,
        concurrency=plan.concurrency,
        duration_s=plan.duration_s if plan.concurrency else None,
        prompts=prepared.prompts,
        on_progress=on_progress,
        meta={"plan": settings, "mix": prepared.mix, "clipped": prepared.clipped},
    )
    summary = summarize(run.trace, slo) if run.trace.requests else None
    return LoadPoint(plan, prepared.mix, prepared.clipped, run, summary)


def warm_up(target: Target, plan: LoadPlan, count: int) -> float | None:
    """Send `count` requests like the plan's, before and apart from the run; None for none of them.

    Returns the median end-to-end seconds of those that were answered. Raises MeasurementError when
    none was: there is nothing to measure, and the first error says why.
    """
    if count < 1:
        return None
    closed = replace(
        plan,
        rate_req_per_s=None,
        concurrency=min(count, WARMUP_CONCURRENCY),
        num_requests=count,
        duration_s=None,
        seed=plan.seed + _WARMUP_SEED,
    )
    point = run_point(target, closed)
    if point.interrupted:
        raise KeyboardInterrupt
    if point.all_failed:
        raise MeasurementError(f"every warm-up request failed; the first: {point.first_error()}")
    return point.summary.e2e_s.median
