"""What MLPerf Inference's LoadGen would report (server scenario, token latencies)."""

from collections.abc import Sequence
from typing import Any

from inferlab.dialects.common import completed, rate
from inferlab.metrics import SLO, token_events
from inferlab.stats import requests_for_percentile
from inferlab.trace import Request, Trace

_RANKS = (50.0, 90.0, 95.0, 97.0, 99.0, 99.9)
_NS = 1e9


def mlperf(trace: Trace, slo: SLO | None = None) -> dict[str, Any]:
    """The keys of LoadGen's detail log (whole nanoseconds, samples and tokens a second).

    Source: mlcommons/inference, loadgen/results.cc (`ProcessLatencies`, `ProcessTokenLatencies`,
    `LogDetail`), loadgen/loadgen.cc, loadgen/logging.cc. Rules:

    - Every latency runs from the **scheduled** time, so that a late send counts; empty chunks are
      no tokens.
    - TPOT = (latency - first-token latency) / (tokens - 1) for each sample.
    - Percentile p = sorted[floor(n * p)]: a value that occurred, never an interpolation. Means are
      whole nanoseconds.
    - Samples a second = (n - 1) / time of the last completion, since the start.
    - In place of goodput a run is valid or not: p99 of TTFT and of TPOT within their limits, and
      enough samples over no more late ones (early stopping, 99 % confidence).

    Uncertain: LoadGen knows no failed request (all samples must complete), so failures and answers
    without tokens are left out here, where the real run would not end. It demands more than one
    token; a single-token answer is left out of TPOT. An end-to-end limit is not among its rules.
    """
    samples = [request for request in completed(trace.requests) if token_events(request)]
    start = min((request.scheduled for request in trace.requests), default=0.0)
    first = [_ns(token_events(r)[0][0] - r.scheduled) for r in samples]
    latency = [_ns(token_events(r)[-1][0] - r.scheduled) for r in samples]
    tpot = [_tpot_ns(request) for request in samples if request.output_tokens > 1]
    done_s = max((token_events(r)[-1][0] - start for r in samples), default=0.0)
    scheduled_s = max((r.scheduled - start for r in samples), default=0.0)
    tokens = sum(request.output_tokens for request in samples)
    report: dict[str, Any] = {
        "result_query_count": len(samples),
        "result_scheduled_samples_per_sec": rate(max(len(samples) - 1, 0), scheduled_s),
        "result_completed_samples_per_sec": rate(max(len(samples) - 1, 0), done_s),
        "result_completed_tokens_per_second": rate(tokens, done_s),
        "result_min_latency_ns": min(latency, default=None),
        "result_max_latency_ns": max(latency, default=None),
        "result_mean_latency_ns": _mean(latency),
        **{f"result_{q:.2f}_percentile_latency_ns": _rank(latency, q) for q in _RANKS},
        "result_first_token_min_latency_ns": min(first, default=None),
        "result_first_token_max_latency_ns": max(first, default=None),
        "result_first_token_mean_latency_ns": _mean(first),
        **{f"result_first_token_{q:.2f}_percentile_latency_ns": _rank(first, q) for q in _RANKS},
        "result_time_to_output_token_min": min(tpot, default=None),
        "result_time_to_output_token_max": max(tpot, default=None),
        "result_time_to_output_token_mean": _mean(tpot),
        **{f"result_time_per_output_token_{q:.2f}_percentile_ns": _rank(tpot, q) for q in _RANKS},
    }
    limited = [
        (values, limit * _NS)
        for values, limit in (
            (first, slo.ttft_s if slo else None),
            (tpot, slo.tpot_s if slo else None),
        )
        if limit is not None
    ]
    if limited:
        report["result_perf_constraints_met"] = all(
            values and _rank(values, 99.0) <= limit for values, limit in limited
        )
        report["early_stopping_met"] = all(_enough(values, limit) for values, limit in limited)
    return report


def _ns(value_s: float) -> int:
    return round(value_s * _NS)


def _tpot_ns(request: Request) -> int:
    events = token_events(request)
    return _ns(events[-1][0] - events[0][0]) // (request.output_tokens - 1)


def _mean(values: Sequence[int]) -> int | None:
    return sum(values) // len(values) if values else None


def _rank(values: Sequence[int], q: float) -> int | None:
    return sorted(values)[int(len(values) * (q / 100))] if values else None


def _enough(values: Sequence[int], limit_ns: float) -> bool:
    late = sum(value > limit_ns for value in values)
    return len(values) >= requests_for_percentile(99, failures=late)
