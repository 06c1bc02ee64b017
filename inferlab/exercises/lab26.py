"""Checks of the exercises of lab 26: scores, bytes saved, a crossover, splits, what a row saves.

Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import math

from inferlab import kernelcost
from inferlab.exercises.judge import judge_choice, judge_number
from inferlab.models.config import get_config

LARGE, SMALL = "llama-3.1-8b", "smollm2-135m"
DTYPE = "bfloat16"
PROMPT_LEN = 4096  # exercise 1
EAGER_LAUNCH_S, COMPILED_LAUNCH_S = 1e-6, 15e-6  # exercise 3: assumed
COPY_BYTES_PER_S = 20e9
PROCESSORS = 132  # exercise 4: multiprocessors of an H100 or H200


def score_bytes(model: str = LARGE, prompt_len: int = PROMPT_LEN) -> float:
    """Bytes of one layer's attention scores of a prompt, written once, in bf16."""
    return get_config(model).num_q_heads * prompt_len**2 * 2


def check_scores(answer: float | None) -> str:
    """Exercise 1: bytes of the scores of one layer of Llama-3.1-8B, 4096 tokens, bf16."""
    config, exact = get_config(LARGE), score_bytes()
    return judge_number(
        answer,
        exact,
        "bytes",
        slips={
            "every query head has scores of its own": exact / config.group_size,
            "that is one head": exact / config.num_q_heads,
            "bf16 takes two bytes": exact / 2,
            "one layer is asked": exact * config.num_layers,
            "half of them are masked, but the naive operator writes them too": exact / 2 + 1,
        },
    )


def norm_bytes_ratio() -> float:
    """Bytes of residual add and RMSNorm as separate operators over fused ones, many rows, bf16."""
    config = get_config(LARGE)
    separate, fused = (
        kernelcost.cost("add_rms_norm", variant, config, DTYPE, 4096).bytes
        for variant in ("eager", "triton")
    )
    return separate / fused


def check_norm_ratio(answer: float | None) -> str:
    """Exercise 2: bytes of a norm as nine operators over those of one kernel."""
    exact = norm_bytes_ratio()
    return judge_number(
        answer,
        exact,
        "times",
        tolerance=0.03,
        slips={
            "that is the number of launches": 9,
            "the intermediate results are float32: four bytes, not two": 21 / 4,
            "the fused kernel also writes the sum back": exact * 4 / 3,
        },
    )


def crossover_rows() -> float:
    """Rows of SmolLM2-135M from which a compiled SwiGLU pays, with the assumed costs."""
    eager, fused = (
        kernelcost.cost("swiglu", variant, get_config(SMALL), DTYPE, 1)
        for variant in ("eager", "compile")
    )
    lost_s = COMPILED_LAUNCH_S - eager.launches * EAGER_LAUNCH_S
    return lost_s * COPY_BYTES_PER_S / (eager.bytes - fused.bytes)


def check_crossover(answer: float | None) -> str:
    """Exercise 3: rows from which a compiled SwiGLU is faster than two operators."""
    exact = crossover_rows()
    moved = kernelcost.cost("swiglu", "compile", get_config(SMALL), DTYPE, 1).bytes
    ignored = COMPILED_LAUNCH_S * COPY_BYTES_PER_S
    saved = (COMPILED_LAUNCH_S - 2 * EAGER_LAUNCH_S) * COPY_BYTES_PER_S / exact
    return judge_number(
        answer,
        exact,
        "rows",
        tolerance=0.03,
        slips={
            "the separate operators have launches too, two of them": ignored / saved,
            "what counts is the bytes saved, not the bytes that are left": exact * saved / moved,
            "numbers take two bytes each": exact * 2,
        },
    )


def splits_needed(model: str = LARGE, batch_size: int = 1) -> int:
    """Splits of the context that give every multiprocessor a program, one a group and split."""
    return math.ceil(PROCESSORS / (batch_size * get_config(model).num_kv_heads))


def check_splits(answer: float | None) -> str:
    """Exercise 4: splits that fill 132 multiprocessors with one sequence of Llama-3.1-8B."""
    config, exact = get_config(LARGE), splits_needed()
    return judge_number(
        answer,
        exact,
        "splits",
        tolerance=0.01,
        slips={
            "the query heads of a group share a program, which reads their keys once": math.ceil(
                PROCESSORS / config.num_q_heads
            ),
            "sixteen leave some multiprocessors idle: round up": PROCESSORS // config.num_kv_heads,
            "the groups already are programs of their own": PROCESSORS,
        },
    )


def check_saved(answer: str | None) -> str:
    """Exercise 5: what does fusing save for one row of 576 numbers on a CPU?"""
    return judge_choice(
        answer,
        "launches",
        {
            "memory traffic": "a row is a kilobyte: it never leaves the nearest cache",
            "arithmetic": "the fused loop computes the same",
            "nothing": "operators that are not started are saved, if the one that is costs less",
        },
    )
