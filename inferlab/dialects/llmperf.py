"""What LLMPerf would report."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from inferlab.dialects.common import completed, last_event_s, rate, sent_to_first_token_s
from inferlab.metrics import SLO, token_events
from inferlab.trace import Request, Trace

_RANKS = (25, 50, 75, 90, 95, 99)


def llmperf(trace: Trace, slo: SLO | None = None) -> dict[str, Any]:
    """The summary of LLMPerf's token benchmark (seconds; it knows no SLO, so `slo` is ignored).

    Source: ray-project/llmperf, token_benchmark_ray.py (`metrics_summary`), common_metrics.py and
    src/llmperf/ray_clients/openai_chat_completions_client.py. Rules:

    - The clock of a request starts when it is sent; empty chunks are skipped.
    - **inter_token_latency_s = (TTFT + all gaps) / tokens**, so it holds the first token's wait.
      It is 0, not undefined, for an answer without tokens, and so is `ttft_s`.
    - Percentiles: pandas `quantile`, linear; standard deviation of the sample (n - 1).
    - Failed requests are dropped, and counted in `number_errors` and `error_rate`.
    - `mean_output_throughput_token_per_s` divides by the wall time of the run, time-outs included.

    Uncertain: tokens are counted again with a tokenizer there. A cancelled request is taken as an
    error. End-to-end latency ends when the stream closes, here with the last event of any kind.
    """
    good = completed(trace.requests)
    errors = len(trace.requests) - len(good)
    start = min((request.scheduled for request in trace.requests), default=0.0)
    duration = max(map(last_event_s, trace.requests), default=0.0) - start
    per_minute = rate(60 * len(good), duration)
    return {
        "inter_token_latency_s": _series([_inter_token_s(request) for request in good]),
        "ttft_s": _series([sent_to_first_token_s(request) or 0.0 for request in good]),
        "end_to_end_latency_s": _series([_latency_s(request) for request in good]),
        "request_output_throughput_token_per_s": _series(
            [rate(request.output_tokens, _latency_s(request)) or 0.0 for request in good]
        ),
        "number_input_tokens": _series([request.prompt_tokens for request in good]),
        "number_output_tokens": _series([request.output_tokens for request in good]),
        "num_requests_started": len(trace.requests),
        "error_rate": errors / len(trace.requests) if trace.requests else 0,
        "number_errors": errors,
        "mean_output_throughput_token_per_s": rate(
            sum(request.output_tokens for request in good), duration
        ),
        "num_completed_requests": len(good),
        "num_completed_requests_per_min": per_minute,
    }


def _latency_s(request: Request) -> float:
    return last_event_s(request) - request.sent


def _inter_token_s(request: Request) -> float:
    if request.output_tokens == 0:
        return 0.0
    return (token_events(request)[-1][0] - request.sent) / request.output_tokens


def _series(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        empty = dict.fromkeys(("mean", "min", "max", "stddev"))
        return {"quantiles": dict.fromkeys(f"p{rank}" for rank in _RANKS), **empty}
    array = np.asarray(values, dtype=float)
    ranks = zip(_RANKS, np.percentile(array, _RANKS).tolist(), strict=True)
    return {
        "quantiles": {f"p{rank}": value for rank, value in ranks},
        "mean": float(array.mean()),
        "min": float(array.min()),
        "max": float(array.max()),
        "stddev": float(array.std(ddof=1)) if array.size > 1 else None,
    }
