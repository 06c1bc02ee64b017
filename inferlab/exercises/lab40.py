"""Checks of the exercises of lab 40: the knee, waiting in line, padding, a wait limit.

Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

from inferlab.batching.cost import knee_of_lines, padding_waste_ratio
from inferlab.batching.queueing import hold_wait_s, md1_wait_s
from inferlab.exercises.judge import judge_choice, judge_number

FIXED_S, PER_ROW_S = 8e-3, 0.5e-3  # exercise 1: a step of B rows takes FIXED + B PER_ROW
RATE, SERVICE_S = 4.0, 0.2  # exercise 2: requests a second, seconds of each
PROMPT_LENS = (20, 30, 50, 300)  # exercise 3: read together, padded to the longest
HOLD_RATE, HOLD_S = 2.0, 0.5  # exercise 4: an idle server holds batches open


def check_knee(answer: float | None) -> str:
    """Exercise 1: the batch size at the knee of a step that grows by a constant for each row."""
    exact = knee_of_lines([(FIXED_S, PER_ROW_S)])
    return judge_number(
        answer,
        exact,
        "sequences",
        slips={
            "that is a rate: tokens a second as the batch grows without end": 1 / PER_ROW_S,
            "that is the throughput at the knee; its batch size is asked": exact
            / (FIXED_S + PER_ROW_S * exact),
        },
    )


def check_wait(answer: float | None) -> str:
    """Exercise 2: mean wait in line of requests that are served one at a time."""
    exact = md1_wait_s(RATE, SERVICE_S)
    return judge_number(
        answer,
        exact,
        "s",
        slips={
            "that is for exponential service; here each takes the same time": 2 * exact,
            "that is wait and service together: a wait is asked": exact + SERVICE_S,
            "that is how many wait, not how long": RATE * exact,
        },
    )


def check_padding(answer: float | None) -> str:
    """Exercise 3: share of the positions of a padded prefill that hold padding."""
    exact = padding_waste_ratio(PROMPT_LENS)
    return judge_number(
        answer,
        exact,
        "of the positions",
        tolerance=0.005,
        slips={
            "that is the share that holds tokens": 1 - exact,
            "a share between 0 and 1 is asked, not percent": 100 * exact,
        },
    )


def check_hold(answer: float | None) -> str:
    """Exercise 4: mean wait when every batch is held open and the server is otherwise idle."""
    exact = hold_wait_s(HOLD_RATE, HOLD_S)
    return judge_number(
        answer,
        exact,
        "s",
        tolerance=0.005,
        slips={
            "only the first of a batch waits that long": HOLD_S,
            "half of it is the wait of those that join; the first waits all of it": HOLD_S / 2,
        },
    )


def check_regime(answer: str | None) -> str:
    """Exercise 5: where a wait limit above zero raises every latency and wins nothing."""
    return judge_choice(
        answer,
        "low load",
        {
            "high load": "there batches fill before the limit, which then does nothing",
            "overload": "there the line is never empty: nobody is held",
            "equal lengths": "lengths decide what padding costs, not who is there to join",
        },
    )
