"""Checks of the exercises of lab 27: host-bound sizes, what compiling costs, graphs, recompilation.

Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

from inferlab.exercises.judge import judge_choice, judge_number
from inferlab.stepcost import breakeven_tokens, num_graphs, padded_ratio

# Exercise 1: an assumed step on an assumed GPU.
OPERATORS, OPERATOR_S, BANDWIDTH = 700, 5e-6, 4e12
# Exercise 2
COMPILE_S, SLOW_S, FAST_S, ANSWER_LEN = 24.0, 0.014, 0.011, 200
# Exercise 3
CAPACITY, BUCKET_SIZE, NUM_BATCH_SIZES = 4096, 128, 5
CONTEXT_LEN = 1153
CHANGES = ("another token", "another batch size", "a growing cache", "another dtype")


def check_size(answer_bytes: float | None) -> str:
    """Exercise 1: bytes a step must read for reading to take as long as starting its operators."""
    host_s = OPERATORS * OPERATOR_S
    exact = host_s * BANDWIDTH
    return judge_number(
        answer_bytes,
        exact,
        "bytes",
        slips={
            "parameters are asked in bytes: each of them takes two": exact / 2,
            "that is the cost of a single operator": OPERATOR_S * BANDWIDTH,
            "the answer is asked in bytes, not in gigabytes": exact / 1e9,
        },
    )


def check_answers(answer: float | None) -> str:
    """Exercise 2: answers of 200 tokens until compiling has paid for itself."""
    tokens = breakeven_tokens(COMPILE_S, SLOW_S, FAST_S)
    return judge_number(
        answer,
        tokens / ANSWER_LEN,
        "answers",
        slips={
            "that is the number of tokens, not of answers": tokens,
            "a token saves the difference of the two, not the whole step": COMPILE_S
            / SLOW_S
            / ANSWER_LEN,
            "that compares with the compiled step alone": COMPILE_S / FAST_S / ANSWER_LEN,
        },
    )


def check_graphs(answer: float | None) -> str:
    """Exercise 3: graphs that cover every context and batch size."""
    exact = num_graphs(CAPACITY, BUCKET_SIZE, NUM_BATCH_SIZES)
    return judge_number(
        answer,
        exact,
        "graphs",
        tolerance=0.001,
        slips={
            "each batch size needs graphs of its own": num_graphs(CAPACITY, BUCKET_SIZE),
            "a graph covers a whole bucket of contexts": CAPACITY * NUM_BATCH_SIZES,
            "the buckets of each batch size are counted, not added to": num_graphs(
                CAPACITY, BUCKET_SIZE
            )
            + NUM_BATCH_SIZES,
        },
    )


def check_padding(answer: float | None) -> str:
    """Exercise 4: share of the positions that a bucketed step reads for nothing."""
    wasted = 1 - 1 / padded_ratio(CONTEXT_LEN, BUCKET_SIZE)
    read = padded_ratio(CONTEXT_LEN, BUCKET_SIZE)
    return judge_number(
        answer,
        wasted,
        "of what is read",
        tolerance=0.01,
        slips={
            "that is the share that is needed": 1 / read,
            "that is relative to what is needed; the share of what is read is asked": read - 1,
            "a share between 0 and 1 is asked, not percent": 100 * wasted,
        },
    )


def check_change(answer: str | None) -> str:
    """Exercise 5: which of the changes leaves a compiled step of fixed shapes alone?"""
    return judge_choice(
        answer,
        CHANGES[0],
        {
            "another batch size": "a batch size is a shape: it is compiled for, or padded to",
            "a growing cache": "its length is a shape: that is what buckets are for",
            "another dtype": "another dtype is another program",
        },
    )
