"""What AIPerf (formerly genai-perf) would report."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from inferlab.dialects.common import completed, rate, sent_to_first_token_s, within
from inferlab.metrics import SLO, itl_s, token_events
from inferlab.trace import Request, Trace

_RANKS = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def aiperf(trace: Trace, slo: SLO | None = None) -> dict[str, Any]:
    """The blocks of `profile_export_aiperf.json`: unit, avg, p1 ... p99, min, max, std.

    Source: src/aiperf/metrics/types/ (ttft_metric.py, inter_token_latency_metric.py,
    inter_chunk_latency_metric.py, request_latency_metric.py, good_request_count_metric.py). Rules:

    - The clock of a request starts when it is sent. Chunks without content are ignored, at both
      ends of the stream.
    - **Inter-token latency** = (request latency - TTFT) / (tokens - 1) for each request: the word
      is ITL, the quantity is vLLM's TPOT. Undefined below two tokens. The gaps between chunks are
      called inter-chunk latency.
    - Percentiles: linear interpolation; standard deviation of the population.
    - Failed requests appear only in `error_request_count`.
    - Goodput: a request that lacks a limited quantity (one token under an ITL limit) is not good.
    - Durations run from the first request's start to the last response of the valid requests.

    Uncertain: an answer without content is taken as an error, and so is a cancelled request. Newer
    versions subtract the first chunk's own token count when the server reports it for each chunk
    (`--per-chunk-usage`), and add `adj_*` blocks that count every failure as an infinite latency;
    neither is the default band reproduced here. A block without values is None here, absent there.
    """
    valid = [request for request in completed(trace.requests) if token_events(request)]
    start = min((request.sent for request in valid), default=0.0)
    end = max((token_events(request)[-1][0] for request in valid), default=0.0)
    duration = end - start
    tokens = sum(request.output_tokens for request in valid)
    per_token = [value for request in valid if (value := _inter_token_s(request)) is not None]
    seconds = [events[1][0] - events[0][0] for r in valid if len(events := token_events(r)) > 1]
    report: dict[str, Any] = {
        "request_count": _scalar(len(valid), "requests"),
        "error_request_count": _scalar(len(trace.requests) - len(valid), "requests"),
        "benchmark_duration": _scalar(duration, "sec"),
        "time_to_first_token": _block([sent_to_first_token_s(r) for r in valid], "ms", 1e3),
        "time_to_second_token": _block(seconds, "ms", 1e3),
        "inter_token_latency": _block(per_token, "ms", 1e3),
        "inter_chunk_latency": _block([gap for r in valid for gap in itl_s(r)], "ms", 1e3),
        "request_latency": _block([_latency_s(r) for r in valid], "ms", 1e3),
        "output_token_throughput_per_user": _block(
            [1 / value for value in per_token if value > 1e-12], "tokens/sec/user"
        ),
        "output_sequence_length": _block([r.output_tokens for r in valid], "tokens"),
        "input_sequence_length": _block([r.prompt_tokens for r in valid], "tokens"),
        "output_token_throughput": _scalar(rate(tokens, duration), "tokens/sec"),
        "request_throughput": _scalar(rate(len(valid), duration), "requests/sec"),
    }
    if slo is not None:
        good = sum(_is_good(request, slo) for request in valid)
        report["good_request_count"] = _scalar(good, "requests")
        report["goodput"] = _scalar(rate(good, duration), "requests/sec")
    return report


def _latency_s(request: Request) -> float:
    return token_events(request)[-1][0] - request.sent


def _inter_token_s(request: Request) -> float | None:
    if request.output_tokens < 2:
        return None
    after_first = _latency_s(request) - (sent_to_first_token_s(request) or 0.0)
    return after_first / (request.output_tokens - 1)


def _is_good(request: Request, slo: SLO) -> bool:
    verdicts = (
        within(sent_to_first_token_s(request), slo.ttft_s),
        within(_inter_token_s(request), slo.tpot_s),
        within(_latency_s(request), slo.e2e_s),
    )
    return all(verdicts)  # an undefined quantity (None) is not good


def _scalar(value: float | None, unit: str) -> dict[str, Any] | None:
    return None if value is None else {"unit": unit, "avg": value}


def _block(values: Sequence[Any], unit: str, scale: float = 1.0) -> dict[str, Any] | None:
    if not values:
        return None
    array = np.asarray(values, dtype=float) * scale
    ranks = dict(zip(_RANKS, np.percentile(array, _RANKS).tolist(), strict=True))
    return {
        "unit": unit,
        "avg": float(array.mean()),
        **{f"p{rank}": value for rank, value in ranks.items()},
        "min": float(array.min()),
        "max": float(array.max()),
        "std": float(array.std()),
    }
