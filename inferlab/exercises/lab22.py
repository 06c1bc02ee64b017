"""Checks of the exercises of lab 22: waste of a reservation, blocks, sharing, the price of a table.

Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from inferlab.exercises.judge import judge_choice, judge_number
from inferlab.models.config import get_config
from inferlab.models.cost import kv_bytes_per_token
from inferlab.pagingcost import half_block_waste, table_ratio

MODEL, DTYPE = "llama-3.1-8b", "bfloat16"
MAX_LEN = 8192  # exercise 1: reserved for each sequence
MEAN_HELD = 1024  # exercises 1 and 2: positions that a sequence holds
BLOCK_SIZE = 16
STORE_BYTES = 64e9  # exercise 2
PROMPT_LEN, OUTPUT_LEN, NUM_SAMPLES = 1000, 100, 8  # exercise 3
TABLE_BLOCK_SIZE = 1  # exercise 4


def check_waste(answer: float | None) -> str:
    """Exercise 1: share of a reservation for the maximum that holds nothing."""
    exact = 1 - MEAN_HELD / MAX_LEN
    return judge_number(
        answer,
        exact,
        "of what is reserved",
        tolerance=0.005,
        slips={
            "that is the share that is used": 1 - exact,
            "a share between 0 and 1 is asked, not percent": 100 * exact,
        },
    )


def sequences_paged() -> float:
    """Sequences of 1024 positions that fit 64 GB of blocks of 16, half a block of each empty."""
    tokens = STORE_BYTES / kv_bytes_per_token(get_config(MODEL), DTYPE)
    return tokens * (1 - half_block_waste(MEAN_HELD, BLOCK_SIZE)) / MEAN_HELD


def check_sequences(answer: float | None) -> str:
    """Exercise 2: how many sequences run in the same store with paging."""
    config = get_config(MODEL)
    tokens = STORE_BYTES / kv_bytes_per_token(config, DTYPE)
    return judge_number(
        answer,
        sequences_paged(),
        "sequences",
        slips={
            "that many fit when each reserves the maximum": tokens / MAX_LEN,
            "keys and values: two tensors a layer": 2 * sequences_paged(),
            "only the key/value heads are kept": sequences_paged() / config.group_size,
        },
    )


def blocks_shared() -> int:
    """Blocks of eight answers to one prompt, shared until they differ."""
    full = PROMPT_LEN // BLOCK_SIZE
    ends = PROMPT_LEN + OUTPUT_LEN - 1
    return full + NUM_SAMPLES * (-(-ends // BLOCK_SIZE) - full)


def check_sharing(answer: float | None) -> str:
    """Exercise 3: blocks at the end when the prompt of eight answers is shared."""
    ends = PROMPT_LEN + OUTPUT_LEN - 1
    alone = NUM_SAMPLES * -(-ends // BLOCK_SIZE)
    prompt = -(-PROMPT_LEN // BLOCK_SIZE)
    answers = -(-(OUTPUT_LEN - 1) // BLOCK_SIZE)
    return judge_number(
        answer,
        blocks_shared(),
        "blocks",
        tolerance=1e-3,
        slips={
            "that is without sharing": alone,
            "the prompt's last block is partly filled: each answer copies it": prompt
            + NUM_SAMPLES * answers,
        },
    )


def check_table(answer: float | None) -> str:
    """Exercise 4: bytes that a kernel moves with blocks of one token, over those of a dense one."""
    config = get_config(MODEL)
    exact = table_ratio(config, DTYPE, TABLE_BLOCK_SIZE)
    return judge_number(
        answer,
        exact,
        "times the bytes",
        tolerance=5e-4,
        slips={
            "that is what is added: the ratio counts the keys and values too": exact - 1,
            "keys and values: 2 P D numbers for each entry": 2 * exact - 1,
        },
    )


def check_regime(answer: str | None) -> str:
    """Exercise 5: for which requests paging wins nothing over a reservation."""
    return judge_choice(
        answer,
        "fixed lengths",
        {
            "long answers": "they take their positions one by one: that is what paging is for",
            "short prompts": "short of the maximum, a reservation wastes most",
            "shared prompts": "a reservation cannot share, blocks can",
        },
    )
