"""Checks of the exercises of lab 20: work saved by a cache, its bytes, waste and the bus.

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

from inferlab.exercises.judge import judge_number
from inferlab.models.config import get_config
from inferlab.models.cost import (
    decode_cost,
    kv_bytes_per_token,
    kv_cache_bytes,
    prefill_cost,
    weight_bytes,
    weight_read_bytes,
)

SMALL, LARGE = "smollm2-135m", "llama-3.1-8b"
DTYPE = "bfloat16"
NUM_SEQS = 256  # exercise 1
PROMPT_LEN, OUTPUT_LEN = 512, 512  # exercises 2 and 3
BUS_BYTES_PER_S = 50e9  # exercise 4: an assumed bus
OFFLOADED_CONTEXT_LEN = 8192


def crossover_context(model: str = LARGE, num_seqs: int = NUM_SEQS) -> float:
    """Context at which the cache of `num_seqs` sequences takes as much as the weights."""
    config = get_config(model)
    return weight_bytes(config, DTYPE) / (num_seqs * kv_bytes_per_token(config, DTYPE))


def check_crossover(answer: float | None) -> str:
    """Exercise 1: context at which the cache of 256 sequences outgrows the 8B weights."""
    config, exact = get_config(LARGE), crossover_context()
    read = exact * weight_read_bytes(config, DTYPE) / weight_bytes(config, DTYPE)
    return judge_number(
        answer,
        exact,
        "tokens",
        slips={
            "each of the 256 sequences has its own cache": exact * NUM_SEQS,
            "keys and values: two tensors a layer": exact * 2,
            "only the key/value heads are kept, and four query heads share one": exact
            / config.group_size,
            "the embedding table is in memory too, though a step does not read it": read,
        },
    )


def recompute_ratio(prompt_len: int = PROMPT_LEN, output_len: int = OUTPUT_LEN) -> float:
    """FLOPs of writing `output_len` tokens without a cache over those with one (SmolLM2-135M)."""
    config = get_config(SMALL)
    contexts = range(prompt_len + 1, prompt_len + output_len)
    first = prefill_cost(config, DTYPE, 1, prompt_len).flops
    without = first + sum(prefill_cost(config, DTYPE, 1, s).flops for s in contexts)
    kept = first + sum(decode_cost(config, DTYPE, 1, s).flops for s in contexts)
    return without / kept


def check_recompute(answer: float | None) -> str:
    """Exercise 2: how many times the FLOPs does generation take without a cache?"""
    config = get_config(SMALL)
    contexts = range(PROMPT_LEN + 1, PROMPT_LEN + OUTPUT_LEN)
    steps = sum(prefill_cost(config, DTYPE, 1, s).flops for s in contexts)
    decode = sum(decode_cost(config, DTYPE, 1, s).flops for s in contexts)
    return judge_number(
        answer,
        recompute_ratio(),
        "times",
        tolerance=0.03,
        slips={
            "that compares the decode steps only; both pay for the prefill": steps / decode,
            "that is the number of steps: a step of the cache is not the whole": OUTPUT_LEN,
        },
    )


def check_waste(answer: float | None) -> str:
    """Exercise 3: share of a static cache that is never used, sized for SmolLM2's maximum."""
    config = get_config(SMALL)
    used = (PROMPT_LEN + OUTPUT_LEN - 1) / config.max_context_len
    return judge_number(
        answer,
        1 - used,
        "of the cache",
        tolerance=0.005,
        slips={
            "that is the share that is used": used,
            "a share between 0 and 1 is asked, not percent": 100 * (1 - used),
            "the answer takes places too": 1 - PROMPT_LEN / config.max_context_len,
        },
    )


def check_offload(answer_s: float | None) -> str:
    """Exercise 4: least seconds of a step whose cache of 8192 tokens comes over the bus."""
    config = get_config(LARGE)
    exact = kv_cache_bytes(config, DTYPE, 1, OFFLOADED_CONTEXT_LEN) / BUS_BYTES_PER_S
    return judge_number(
        answer_s,
        exact,
        "s",
        slips={
            "milliseconds: the answer is asked in seconds": exact * 1e3,
            "keys and values: two tensors a layer": exact / 2,
            "only the key/value heads are kept": exact * config.group_size,
            "the weights stay on the GPU": exact + weight_bytes(config, DTYPE) / BUS_BYTES_PER_S,
        },
    )
