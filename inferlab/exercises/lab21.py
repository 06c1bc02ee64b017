"""Checks of the exercises of lab 21: bytes of a layout, what fits, and what remaking keys costs.

Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from inferlab import layoutcost
from inferlab.exercises.judge import judge_number
from inferlab.models.config import get_config
from inferlab.models.cost import decode_cost

MODEL, DTYPE = "llama-3.1-8b", "bfloat16"
BUDGET_BYTES = 64 * 2**30  # exercise 2: an assumed room for caches
CONTEXT_LEN = 8192  # exercises 2 and 3
RANK = 512  # exercise 3
# Exercise 4: DeepSeek-V2's published shape; numbers that a layer keeps for a token, head size.
DEEPSEEK_KEPT, DEEPSEEK_HEAD_DIM = 512 + 64, 128


def token_bytes(layout: str = "mqa") -> int:
    """Cache bytes of one token of the 8B model in that layout."""
    return layoutcost.kv_bytes_per_token(layoutcost.get_layout(get_config(MODEL), layout), DTYPE)


def check_token_bytes(answer: float | None) -> str:
    """Exercise 1: bytes that one token keeps if Llama-3.1-8B shares one key/value head."""
    exact = token_bytes()
    return judge_number(
        answer,
        exact,
        "bytes",
        slips={
            "keys and values: two tensors a layer": exact / 2,
            "that is the layout as trained: 8 key/value heads": token_bytes("gqa"),
            "that is the layout that shares nothing": token_bytes("mha"),
            "every layer keeps its own": exact / get_config(MODEL).num_layers,
        },
    )


def sequences_that_fit(layout: str = "gqa") -> int:
    """Sequences of 8192 tokens in 64 GiB of cache."""
    found = layoutcost.get_layout(get_config(MODEL), layout)
    return layoutcost.largest_batch(found, DTYPE, CONTEXT_LEN, BUDGET_BYTES)


def check_batch(answer: float | None) -> str:
    """Exercise 2: sequences of 8192 tokens that fit 64 GiB, as the model was trained."""
    exact = sequences_that_fit()
    return judge_number(
        answer,
        exact,
        "sequences",
        slips={
            "keys and values: two tensors a layer": 2 * exact,
            "four query heads share a key/value head": sequences_that_fit("mha"),
            "a number takes two bytes": exact / 2,
        },
    )


def remake_ratio() -> float:
    """FLOPs of making 8192 keys and values again over those of all products with weights."""
    config = get_config(MODEL)
    layout = layoutcost.get_layout(config, f"latent-{RANK}")
    made = config.num_layers * CONTEXT_LEN * layout.remake_flops
    attention = 4 * config.q_size * config.num_layers
    return made / (decode_cost(config, DTYPE, 1, 1).flops - attention)


def check_remake(answer: float | None) -> str:
    """Exercise 3: how many times the FLOPs of a step without attention does remaking cost?"""
    exact = remake_ratio()
    return judge_number(
        answer,
        exact,
        "times",
        tolerance=0.05,
        slips={
            "keys and values are made: both": exact / 2,
            "a multiply-add counts two, on both sides": 2 * exact,
            "every layer makes its own": exact / get_config(MODEL).num_layers,
            "8 key/value heads are made, not 32": exact * get_config(MODEL).group_size,
        },
    )


def check_groups(answer: float | None) -> str:
    """Exercise 4: groups of GQA that keep as much as DeepSeek-V2's latent attention."""
    exact = DEEPSEEK_KEPT / (2 * DEEPSEEK_HEAD_DIM)
    return judge_number(
        answer,
        exact,
        "groups",
        tolerance=0.005,
        slips={
            "the rotated part is kept too": 512 / (2 * DEEPSEEK_HEAD_DIM),
            "a group keeps a key and a value": 2 * exact,
        },
    )
