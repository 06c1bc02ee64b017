"""What the formula of Databricks' inference guide would give."""

from typing import Any

from inferlab.dialects.common import (
    completed,
    last_event_s,
    mean_ms,
    rate,
    sent_to_first_token_s,
)
from inferlab.metrics import SLO, token_events
from inferlab.trace import Trace


def databricks(trace: Trace, slo: SLO | None = None) -> dict[str, Any]:
    """Mean milliseconds by the published formula (it knows no SLO, so `slo` is ignored).

    Source: Databricks, "LLM Inference Performance Engineering: Best Practices": latency = TTFT +
    TPOT x (number of tokens to be generated). Solved for TPOT this divides the time after the first
    token by **all** tokens, not by tokens - 1, so it is a little below everybody else's value.
    AWS Neuron's documentation gives the same formula.

    Uncertain: it is a formula in a guide, not a tool, so the rest is our choice: from the sent
    time, empty chunks skipped, failed requests dropped, mean over requests, throughput over the
    time from the first send to the last event. The field names are ours.
    """
    good = [request for request in completed(trace.requests) if token_events(request)]
    start = min((request.sent for request in trace.requests), default=0.0)
    end = max(map(last_event_s, trace.requests), default=0.0)
    first = [sent_to_first_token_s(request) or 0.0 for request in good]
    latency = [token_events(request)[-1][0] - request.sent for request in good]
    per_token = [
        (whole - ttft) / request.output_tokens
        for request, whole, ttft in zip(good, latency, first, strict=True)
    ]
    return {
        "time_to_first_token_ms": mean_ms(first),
        "time_per_output_token_ms": mean_ms(per_token),
        "latency_ms": mean_ms(latency),
        "output_tokens_per_second": rate(sum(r.output_tokens for r in good), end - start),
        "requests": len(good),
    }
