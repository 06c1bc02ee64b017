"""The checks of lab 11 accept right answers, say what is wrong, and wait for an answer."""

import math

import numpy as np
import pytest
import torch

from inferlab.exercises import lab11
from inferlab.exercises.judge import UNANSWERED

CHECKS = [
    lab11.check_spacing, lab11.check_autocast, lab11.check_prefill, lab11.check_smoothing,
    lab11.check_codes, lab11.check_format,
]  # fmt: skip


def prefill_by_hand():
    """Llama-3.1-8B, 4096 tokens, from its published shape: 32 layers of 4096, 14336, 1024 kv."""
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
    products = 2 * (4096 * 32 * layer + 128256 * 4096)
    attention = 2 * 4096 * 4097 * 4096 * 32
    return (products + attention) / (products * 989.5 / 1979 + attention)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lab11.check_spacing, 4),
        (lab11.check_autocast, 4),
        (lab11.check_prefill, prefill_by_hand()),
        (lab11.check_smoothing, 4.0),
        (lab11.check_codes, 7),
        (lab11.check_format, "W8A8"),
    ],
)
def test_right_answers_pass(check, answer):
    assert check(answer).startswith("correct")


@pytest.mark.parametrize(
    ("check", "answer", "hint"),
    [
        (lab11.check_spacing, 0.5, "float16"),
        (lab11.check_spacing, 2**-7, "doubles"),
        (lab11.check_autocast, 8, "two of bf16"),
        (lab11.check_prefill, 2.0, "attention"),
        (lab11.check_smoothing, 16, "divided"),
        (lab11.check_codes, 3, "negative"),
        (lab11.check_codes, 5.1, "whole"),
        (lab11.check_format, "int4 weight-only", "widened"),
        (lab11.check_format, "int1", "choose from"),
    ],
)
def test_known_slips_are_named(check, answer, hint):
    assert hint in check(answer)


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_is_judged_before_an_answer(check):
    assert check(None) == UNANSWERED


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_spacing_is_that_of_torch(name):
    dtype = getattr(torch, name)
    here = torch.tensor(lab11.VALUE, dtype=dtype)
    above = torch.nextafter(here, torch.tensor(math.inf, dtype=dtype))
    assert float(above - here) == lab11.spacing(lab11.VALUE, lab11.MANTISSA_BITS[name])


def test_codes_are_those_of_rounding_a_channel():
    scale = lab11.OUTLIER_RATIO / 127
    channel = np.linspace(-1, 1, 10_001)
    assert len(np.unique(np.round(channel / scale))) == lab11.codes_left()
