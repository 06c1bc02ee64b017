"""What GuideLLM would report."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inferlab.dialects.common import last_event_s, rate, sent_to_first_token_s, within
from inferlab.metrics import SLO, token_events, tpot_s
from inferlab.trace import Request, Trace

_RANKS = {
    "p001": 0.001,
    "p01": 0.01,
    "p05": 0.05,
    "p10": 0.10,
    "p25": 0.25,
    "p50": 0.50,
    "p75": 0.75,
    "p90": 0.90,
    "p95": 0.95,
    "p99": 0.99,
    "p999": 0.999,
}


def guidellm(trace: Trace, slo: SLO | None = None) -> dict[str, Any]:
    """`benchmarks[].metrics` of GuideLLM's report, each split by successful, incomplete, errored.

    Source: src/guidellm/schemas/request_stats.py, statistics.py, benchmark/goodput.py and
    src/guidellm/benchmark/schemas/generative/metrics.py. Rules:

    - The clock of a request starts when it is sent; empty chunks are skipped; the request ends with
      its last chunk of any kind.
    - **time_per_output_token_ms = (last token - request start) / tokens, first token included**;
      **inter_token_latency_ms = (last token - first token) / (tokens - 1)**, our TPOT.
    - Both distributions are weighted by tokens (tokens, and tokens - 1), so a long answer counts
      more and a single-token answer weighs nothing in inter-token latency.
    - Percentiles and median: smallest value whose cumulative weight reaches the rank; no
      interpolation. A missing first-token time enters its distribution as 0.
    - Status error or timeout is "errored", cancelled is "incomplete"; both have their own columns.
    - Goodput: errored requests are bad; cancelled ones, and those that lack a limited quantity (one
      token under a TPOT limit), are excluded. The TPOT limit is compared with inter-token latency.

    Uncertain: rates are means of a distribution over token timings that GuideLLM interpolates; here
    they are the total over the time from the first send to the last end, which is that mean but for
    rounding at the edges. Goodput and attainment are written as plain numbers. Without server usage
    GuideLLM takes the number of tokens that was asked for.
    """
    groups = {
        "successful": [r for r in trace.requests if r.status == "ok"],
        "incomplete": [r for r in trace.requests if r.status == "cancelled"],
        "errored": [r for r in trace.requests if r.status in ("error", "timeout")],
        "total": list(trace.requests),
    }
    start = min((request.sent for request in trace.requests), default=0.0)
    duration = max(map(last_event_s, trace.requests), default=0.0) - start

    def split(of_group: Callable[[Sequence[Request]], Any]) -> dict[str, Any]:
        return {name: of_group(group) for name, group in groups.items()}

    def weighted(value: Callable[[Request], float | None], weight=lambda request: 1.0):
        return split(lambda group: _summary([(value(r) or 0.0, weight(r)) for r in group]))

    def total_rate(count: Callable[[Request], int]):
        return split(lambda group: {"mean": rate(sum(map(count, group)), duration)})

    report: dict[str, Any] = {
        "request_totals": split(len),
        "request_latency": weighted(lambda r: last_event_s(r) - r.sent),
        "time_to_first_token_ms": weighted(lambda r: _ms(sent_to_first_token_s(r))),
        "time_per_output_token_ms": weighted(
            lambda r: _ms(_per_output_token_s(r)), lambda r: float(r.output_tokens)
        ),
        "inter_token_latency_ms": weighted(
            lambda r: _ms(tpot_s(r)), lambda r: float((r.output_tokens or 1) - 1)
        ),
        "output_token_count": weighted(lambda r: float(r.output_tokens)),
        "prompt_token_count": weighted(lambda r: float(r.prompt_tokens)),
        "requests_per_second": total_rate(lambda r: 1),
        "output_tokens_per_second": total_rate(lambda r: r.output_tokens),
        "tokens_per_second": total_rate(lambda r: r.prompt_tokens + r.output_tokens),
        "request_goodput": None,
        "slo_attainment": None,
    }
    if slo is not None:
        verdicts = [_conforms(request, slo) for request in trace.requests]
        judged = [verdict for verdict in verdicts if verdict is not None]
        report["request_goodput"] = rate(sum(judged), duration)
        report["slo_attainment"] = sum(judged) / len(judged) if judged else None
    return report


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else 1e3 * value_s


def _per_output_token_s(request: Request) -> float | None:
    if request.output_tokens == 0:
        return None
    return (token_events(request)[-1][0] - request.sent) / request.output_tokens


def _conforms(request: Request, slo: SLO) -> bool | None:
    """True, False, or None where GuideLLM leaves the request out."""
    if request.status == "cancelled":
        return None
    if request.status != "ok":
        return False
    verdicts = (
        within(sent_to_first_token_s(request), slo.ttft_s),
        within(tpot_s(request), slo.tpot_s),
        within(last_event_s(request) - request.sent, slo.e2e_s),
    )
    return None if None in verdicts else all(verdicts)


def _summary(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Weighted summary of (value, weight) pairs; all zeros for no pairs, as GuideLLM writes it."""
    if not pairs:
        ranks = dict.fromkeys(_RANKS, 0.0)
        zeros = dict.fromkeys(("mean", "median", "std_dev", "min", "max"), 0.0)
        return {**zeros, "count": 0, "percentiles": ranks}
    values, weights = np.array(sorted(pairs), dtype=float).T
    if weights.sum() <= 1e-6:
        weights = np.ones_like(values)  # nothing has weight: GuideLLM falls back to equal ones
        count = 0
    else:
        count = round(float(weights.sum()))
    values, weights = values[weights > 0], weights[weights > 0]
    share = weights / weights.sum()
    cumulative = np.cumsum(share)
    cumulative[-1] = 1.0
    mean = float(values @ share)
    ranks = {
        name: float(values[np.searchsorted(cumulative, rank, side="left")])
        for name, rank in _RANKS.items()
    }
    return {
        "mean": mean,
        "median": ranks["p50"],
        "std_dev": float(np.sqrt((values - mean) ** 2 @ share)),
        "min": float(values[0]),
        "max": float(values[-1]),
        "count": count,
        "percentiles": ranks,
    }
