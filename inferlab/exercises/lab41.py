"""Checks of the exercises of lab 41: idle rows, the gain by hand, factors, chunks, the regime.

Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

import math

from inferlab.exercises.judge import judge_choice, judge_number

OUTPUT_LENS = (10, 20, 30, 140)  # exercise 1: decode steps of a batch of four
FIXED_S, ROW_S = 8e-3, 1e-3  # exercise 2: a step takes FIXED_S + rows ROW_S
BATCH_SIZE, MEAN_STEPS, LONGEST_STEPS = 8, 50, 150
CELLS = {"neither": 100.0, "scheduler": 160.0, "store": 120.0, "both": 360.0}  # exercise 3, tok/s
PROMPT_LEN, CHUNK_SIZE = 2048, 256  # exercise 4
DECODE_S, TOKEN_S = 20e-3, 0.25e-3  # a decode step, and each prompt token that rides along


def idle_share() -> float:
    """Row-steps of a static batch in which nobody is."""
    return 1 - sum(OUTPUT_LENS) / (len(OUTPUT_LENS) * max(OUTPUT_LENS))


def check_idle(answer: float | None) -> str:
    """Exercise 1: share of the rows of a static batch that stay empty."""
    return judge_number(
        answer,
        idle_share(),
        "of the row-steps",
        tolerance=0.005,
        slips={
            "that is the share in use": 1 - idle_share(),
            "a share between 0 and 1 is asked, not percent": 100 * idle_share(),
        },
    )


def law_gain() -> float:
    """Continuous over static for the numbers of exercise 2."""
    rows = BATCH_SIZE * ROW_S * MEAN_STEPS
    return (FIXED_S * LONGEST_STEPS + rows) / (FIXED_S * MEAN_STEPS + rows)


def check_law(answer: float | None) -> str:
    """Exercise 2: the gain where half of a step is shared by its rows."""
    return judge_number(
        answer,
        law_gain(),
        "times the output",
        tolerance=0.01,
        slips={
            "that is the limit, where rows cost nothing": LONGEST_STEPS / MEAN_STEPS,
            "that is its inverse": 1 / law_gain(),
        },
    )


def average_factor() -> float:
    """Geometric mean of the scheduler's factor over both orders of exercise 3."""
    first = CELLS["scheduler"] / CELLS["neither"]
    last = CELLS["both"] / CELLS["store"]
    return math.sqrt(first * last)


def check_factor(answer: float | None) -> str:
    """Exercise 3: the scheduler's factor, averaged so that factors multiply back."""
    first, last = CELLS["scheduler"] / CELLS["neither"], CELLS["both"] / CELLS["store"]
    return judge_number(
        answer,
        average_factor(),
        "times",
        tolerance=0.005,
        slips={
            "that is the factor when it is switched on first": first,
            "that is the factor when it is switched on last": last,
            "an arithmetic mean does not multiply back": (first + last) / 2,
        },
    )


def stall_ratio() -> float:
    """Longest gap with the prompt read whole, over that with chunks, by exercise 4's numbers."""
    return (DECODE_S + PROMPT_LEN * TOKEN_S) / (DECODE_S + CHUNK_SIZE * TOKEN_S)


def check_chunk(answer: float | None) -> str:
    """Exercise 4: how much shorter the longest gap of the others becomes."""
    return judge_number(
        answer,
        stall_ratio(),
        "times shorter",
        tolerance=0.01,
        slips={
            "the decode step is in both gaps": PROMPT_LEN / CHUNK_SIZE,
            "that is its inverse": 1 / stall_ratio(),
        },
    )


def check_regime(answer: str | None) -> str:
    """Exercise 5: where continuous batching wins nothing over static batches."""
    return judge_choice(
        answer,
        "answers of one length",
        {
            "a long line of requests": "while others wait, a row that stands empty is a loss",
            "short prompts": "less of the time goes into reading, so the schedule counts for more",
            "large batches": "the longest of many is longer: a static batch waits more, not less",
        },
    )
