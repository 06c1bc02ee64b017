"""Checks of the exercises of lab 01: one log, one percentile, one stall, one lone token."""

from __future__ import annotations

from inferlab.dialects import vllm
from inferlab.exercises.judge import judge_choice, judge_number
from inferlab.metrics import tpot_s
from inferlab.omission import StallScenario
from inferlab.stats import requests_for_percentile
from inferlab.trace import Request, Trace

# Sent at 0 s: an empty chunk, then 9 tokens in 4 events.
LOG = Request("exercise", 0.0, 0.0, 12, ((0.02, 0), (0.3, 1), (0.38, 3), (0.46, 3), (0.5, 2)))
RARE_Q = 99.9
SCENARIO = StallScenario(num_requests=6000, rate_req_per_s=20.0, service_s=0.03)


def check_tpot(answer_s: float | None) -> str:
    """Exercise 1: TPOT of `LOG` in seconds."""
    start, last = LOG.events[1][0], LOG.events[-1][0]
    tokens = LOG.output_tokens
    return judge_number(
        answer_s,
        tpot_s(LOG),
        "s",
        slips={
            "the empty chunk at the start brought no token, so the clock starts after it": (
                last - LOG.events[0][0]
            )
            / (tokens - 1),
            "the first token is not paid from this time: divide by tokens - 1": (last - start)
            / tokens,
            "that is the mean gap between events; an event can bring several tokens": (last - start)
            / 3,
            "that is the whole answer over all tokens; the first token's wait is TTFT": last
            / tokens,
            "milliseconds: the answer is asked in seconds": 1e3 * tpot_s(LOG),
        },
    )


def check_vllm_tpot(answer_ms: float | None) -> str:
    """Exercise 2: what vLLM prints as mean TPOT of `LOG`, in its unit."""
    reported = vllm(Trace((LOG,)))["mean_tpot_ms"]
    return judge_number(
        answer_ms,
        reported,
        "ms",
        slips={
            "vLLM's first chunk is the first of the stream, even an empty one": 1e3 * tpot_s(LOG),
            "vLLM prints milliseconds": reported / 1e3,
        },
    )


def check_requests(answer: int | None) -> str:
    """Exercise 3: requests that a p99.9 needs at 99 % confidence, none of them late."""
    return judge_number(
        answer,
        requests_for_percentile(RARE_Q),
        "requests",
        tolerance=0.0015,
        slips={
            "that is what 95 % confidence asks for": requests_for_percentile(RARE_Q, 0.95),
            "one in a thousand must be late once on average; that is no proof": 1000,
            "that is p99; one request in a thousand is asked about": requests_for_percentile(99),
        },
    )


def check_hidden_stall(answer_s: float | None) -> str:
    """Exercise 4: the longest stall that p99 of `SCENARIO` does not show."""
    longest_s = SCENARIO.longest_hidden_stall_s(99)
    return judge_number(
        answer_s,
        longest_s,
        "s",
        slips={
            "requests that come while the queue drains are late too: use 1 - rate x service": (
                longest_s / (1 - SCENARIO.load_ratio)
            ),
            "1 % of the requests, not 10 %": 10 * longest_s,
            "drain lengthens the disturbance: multiply by 1 - rate x service": longest_s
            / (1 - SCENARIO.load_ratio) ** 2,
        },
    )


def check_lone_token(answer: str | None) -> str:
    """Exercise 5: what GuideLLM's goodput does with a single-token answer under a TPOT limit."""
    return judge_choice(
        answer,
        "excluded",
        {
            "good": "that is vLLM: a missing TPOT enters as 0, which meets every limit",
            "bad": "that is AIPerf: a request that lacks the limited quantity is not good",
        },
    )
