"""Checks of the exercises of lab 46: capacity, closed loops, requests for a p99, goodput, traps.

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from inferlab.exercises.judge import judge_choice, judge_number
from inferlab.stats import requests_for_percentile
from inferlab.underload.cost import Demand, StepModel, capacity_req_per_s, rate_within_tpot

# Exercises 1 and 2: a decode step of B rows takes 10 + 0.5 B ms, reading a prompt takes 40 ms.
MODEL = StepModel(decode_s=0.010, row_s=0.0005, prefill_s=0.040, token_s=0.0)
OUTPUT_LEN, MAX_NUM_SEQS = 101, 32
ASKED = Demand(read_s=0.040, decode_steps=OUTPUT_LEN - 1, output_len=OUTPUT_LEN)
TPOT_LIMIT_S = 0.030
CLIENTS, E2E_S = 16, 4.0  # exercise 3: users without a pause, seconds of an answer
LATE = 2  # exercise 4: requests over the limit


def paper_capacity() -> float:
    """Requests a second at which the batch of 32 is always full."""
    return capacity_req_per_s(MODEL, ASKED, MAX_NUM_SEQS)


def check_capacity(answer: float | None) -> str:
    """Exercise 1: the rate from which a queue grows without end."""
    step_s = MODEL.step_s(MAX_NUM_SEQS)
    return judge_number(
        answer,
        paper_capacity(),
        "requests/s",
        slips={
            "prompts are read by the same engine: their time counts": MAX_NUM_SEQS
            / (ASKED.decode_steps * step_s),
            "32 requests share a decode step": 1 / (ASKED.read_s + ASKED.decode_steps * step_s),
            "that is in tokens a second": paper_capacity() * OUTPUT_LEN,
        },
    )


def rate_for_limit() -> float:
    """Requests a second up to which the mean TPOT stays within 30 ms."""
    return rate_within_tpot(MODEL, ASKED, TPOT_LIMIT_S, MAX_NUM_SEQS)


def check_limit(answer: float | None) -> str:
    """Exercise 2: the largest rate whose mean TPOT keeps a limit, below capacity."""
    no_prompts = (1 - MODEL.step_s(1) / TPOT_LIMIT_S) / (ASKED.decode_steps * MODEL.row_s)
    return judge_number(
        answer,
        rate_for_limit(),
        "requests/s",
        slips={
            "that is the capacity: pace breaks first": paper_capacity(),
            "decoding stands still while prompts are read": no_prompts,
        },
    )


def check_loop(answer: float | None) -> str:
    """Exercise 3: requests a second that clients without a pause can ask for."""
    return judge_number(
        answer,
        CLIENTS / E2E_S,
        "requests/s",
        slips={
            "the other way round: clients over seconds": E2E_S / CLIENTS,
            "that is what one client asks for": 1 / E2E_S,
        },
    )


def check_requests(answer: float | None) -> str:
    """Exercise 4: requests that show a p99 within its limit although two were late."""
    return judge_number(
        answer,
        requests_for_percentile(99, failures=LATE),
        "requests",
        tolerance=1e-4,
        slips={
            "that is enough if none is late": requests_for_percentile(99),
            "that is enough for one late request": requests_for_percentile(99, failures=1),
            "two late ones in two hundred are a point estimate: it has no confidence": 200,
        },
    )


def check_trap(answer: str | None) -> str:
    """Exercise 5: which report should be distrusted first."""
    return judge_choice(
        answer,
        "repeated seed",
        {
            "open loop": "a schedule that does not wait is what shows the queue",
            "long warm-up": "leaving the first requests out is right, if it is said",
            "many requests": "a tail needs them",
        },
    )
