"""What `vllm bench serve` would report."""

from typing import Any

import numpy as np

from inferlab.dialects.common import completed, last_event_s, rate
from inferlab.metrics import SLO
from inferlab.trace import Request, Trace


def vllm(trace: Trace, slo: SLO | None = None) -> dict[str, Any]:
    """The fields of vLLM's result file (milliseconds, tokens and requests a second).

    Source: vllm/benchmarks/serve.py (`calculate_metrics`) and
    vllm/benchmarks/lib/endpoint_request_func.py. Rules:

    - The clock of a request starts when it is sent; waiting for the client is outside.
    - TTFT ends at the first chunk of the stream, **even an empty one**; the latency ends at the
      last chunk, even an empty one.
    - TPOT = (latency - TTFT) / (tokens - 1), averaged over requests of two tokens or more.
      ITL = gaps between chunks, pooled; a chunk of several tokens is one gap.
    - Percentiles: `np.percentile`, linear; standard deviation of the population.
    - Failed requests are dropped from everything but `failed`; a stream without any chunk failed.
    - Goodput: an answer of one token has a TPOT of 0 and so always meets a TPOT limit.
    - Throughputs divide by the wall time of the whole run, ramp-up and tail included.

    Uncertain: a cancelled or timed-out request is taken as failed. Without server usage vLLM counts
    tokens with its own tokenizer. The file holds E2EL only on request (`--percentile-metrics`).
    """
    good = [request for request in completed(trace.requests) if request.events]
    start = min((request.scheduled for request in trace.requests), default=0.0)
    end = max(map(last_event_s, trace.requests), default=0.0)
    duration = end - start
    tpots = [_tpot_s(request) for request in good]
    output_tokens = sum(request.output_tokens for request in good)
    input_tokens = sum(request.prompt_tokens for request in good)
    report: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(trace.requests) - len(good),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": rate(len(good), duration),
        "request_goodput": None,
        "output_throughput": rate(output_tokens, duration),
        "total_token_throughput": rate(input_tokens + output_tokens, duration),
    }
    if slo is not None:
        report["request_goodput"] = rate(sum(_is_good(r, slo) for r in good), duration)
    samples = {
        "ttft": [_ttft_s(request) for request in good],
        "tpot": [tpot for tpot in tpots if tpot is not None],
        "itl": [
            after[0] - before[0]
            for request in good
            for before, after in zip(request.events, request.events[1:], strict=False)
        ],
        "e2el": [_latency_s(request) for request in good],
    }
    for name, values in samples.items():
        filled = values or [0.0]  # vLLM reports 0, not nothing, for an empty list
        report[f"mean_{name}_ms"] = 1e3 * float(np.mean(filled))
        report[f"median_{name}_ms"] = 1e3 * float(np.median(filled))
        report[f"std_{name}_ms"] = 1e3 * float(np.std(filled))
        report[f"p99_{name}_ms"] = 1e3 * float(np.percentile(filled, 99))
    return report


def _ttft_s(request: Request) -> float:
    return request.events[0][0] - request.sent


def _latency_s(request: Request) -> float:
    return request.events[-1][0] - request.sent


def _tpot_s(request: Request) -> float | None:
    tokens = request.output_tokens
    return (_latency_s(request) - _ttft_s(request)) / (tokens - 1) if tokens > 1 else None


def _is_good(request: Request, slo: SLO) -> bool:
    pairs = (
        (_ttft_s(request), slo.ttft_s),
        (_tpot_s(request) or 0.0, slo.tpot_s),
        (_latency_s(request), slo.e2e_s),
    )
    return all(value <= limit for value, limit in pairs if limit is not None)
