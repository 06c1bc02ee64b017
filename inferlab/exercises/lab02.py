"""Checks of the exercises of lab 02: floors, ridges, and numbers that cannot be true."""

from __future__ import annotations

from inferlab import cited, roofline
from inferlab.exercises.judge import judge_choice, judge_number
from inferlab.hardware.datasheets import DATASHEETS
from inferlab.models.config import get_config
from inferlab.models.cost import decode_cost, weight_read_bytes

MODEL = "llama-3.1-8b"
BATCH_SIZE, CONTEXT_LEN = 16, 8192


def h200() -> roofline.Ceilings:
    """An H200 on paper, in bf16."""
    sheet = DATASHEETS["h200"]
    return roofline.Ceilings(
        sheet.read_bytes_per_s, sheet.flops_per_s["bfloat16"], source="datasheet"
    )


def check_floor(answer_s: float | None) -> str:
    """Exercise 1: least seconds of a bf16 decode step of 16 sequences at 8192 tokens."""
    config = get_config(MODEL)
    cost = decode_cost(config, "bfloat16", BATCH_SIZE, CONTEXT_LEN)
    weights_s = weight_read_bytes(config, "bfloat16") / h200().read_bytes_per_s
    return judge_number(
        answer_s,
        roofline.floor_s(cost, h200()),
        "s",
        slips={
            "the keys and values of 16 sequences are read too": weights_s,
            "each of the 16 sequences has its own keys and values": weights_s
            + cost.kv_read_bytes / BATCH_SIZE / h200().read_bytes_per_s,
            "milliseconds: the answer is asked in seconds": 1e3 * roofline.floor_s(cost, h200()),
        },
    )


def check_ridge(answer: float | None) -> str:
    """Exercise 2: sequences at which int4 weights with bf16 products turn compute-bound."""
    bf16 = roofline.ridge_batch_size(get_config(MODEL), "bfloat16", h200())
    flops_per_weight, bytes_per_weight = 2, 0.5
    exact = bytes_per_weight * h200().ridge_flops_per_byte / flops_per_weight
    return judge_number(
        answer,
        exact,
        "sequences",
        tolerance=0.05,
        slips={
            "that is the ridge of bf16 weights; int4 moves a quarter of the bytes": bf16,
            "a multiply-add counts as two FLOPs": exact * 2,
        },
    )


def check_published(answer: str | None) -> str:
    """Exercise 3: which published decode speed is above what reading the weights allows?"""
    published = cited.get("ai-infra-index-llama2-70b-fp16-h200").value
    ceiling = cited.get("ai-infra-index-llama2-70b-fp16-h200-ceiling").value
    if published <= ceiling:  # the exercise stands on this; data/cited says so
        raise ValueError("the cited figure is no longer above its ceiling")
    return judge_choice(
        answer,
        "c",
        {
            "a": "15 GB at this speed are 2.4 TB/s, below the 3.35 TB/s of an H100",
            "b": "13 GB at this speed are 1.4 TB/s, below the 2.04 TB/s of an A100",
        },
    )
