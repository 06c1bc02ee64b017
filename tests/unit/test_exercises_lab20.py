"""The checks of lab 20 accept right answers, say what is wrong, and wait for an answer."""

import pytest

from inferlab.exercises import lab20
from inferlab.exercises.judge import UNANSWERED

CHECKS = [
    lab20.check_crossover, lab20.check_recompute, lab20.check_waste, lab20.check_offload,
]  # fmt: skip

# Counted by hand from the published shapes, not by the package.
LLAMA_WEIGHTS = 2 * 8_030_261_248
LLAMA_KV = 2 * 32 * 8 * 128 * 2
CROSSOVER = LLAMA_WEIGHTS / LLAMA_KV / 256
OFFLOAD_S = 8192 * LLAMA_KV / 50e9


def recompute_by_hand():
    """FLOPs: 2 a weight and token, and 4 q_size a layer for each pair that is attended to."""
    layers, hidden, inner, q_size, kv_size = 30, 576, 1536, 576, 192
    per_token = 2 * layers * (hidden * (q_size + 2 * kv_size) + q_size * hidden
                              + 3 * hidden * inner)  # fmt: skip
    head, pair = 2 * 49152 * hidden, 4 * layers * q_size

    def whole(s):
        return s * per_token + head + pair * s * (s + 1) / 2

    def step(s):
        return per_token + head + pair * s

    first = whole(512)
    without = first + sum(whole(s) for s in range(513, 1024))
    return without / (first + sum(step(s) for s in range(513, 1024)))


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lab20.check_crossover, CROSSOVER),
        (lab20.check_recompute, recompute_by_hand()),
        (lab20.check_waste, 1 - 1023 / 8192),
        (lab20.check_offload, OFFLOAD_S),
    ],
)
def test_right_answers_pass(check, answer):
    assert check(answer).startswith("correct")


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (lab20.check_crossover, CROSSOVER * 256, "its own cache"),
        (lab20.check_crossover, CROSSOVER / 4, "query heads"),
        (lab20.check_crossover, CROSSOVER * 2, "keys and values"),
        (lab20.check_crossover, CROSSOVER * 15.0 / 16.06, "embedding"),
        (lab20.check_crossover, CROSSOVER * 3, "3.00 times too large"),
        (lab20.check_recompute, 512, "number of steps"),
        (lab20.check_recompute, 1.0, "too small"),
        (lab20.check_waste, 1023 / 8192, "is used"),
        (lab20.check_waste, 87.5, "percent"),
        (lab20.check_offload, OFFLOAD_S * 1e3, "milliseconds"),
        (lab20.check_offload, OFFLOAD_S * 4, "key/value heads"),
        (lab20.check_offload, -1, "wrong sign"),
    ],
)
def test_wrong_answers_hear_what_differs(check, answer, says):
    verdict = check(answer)
    assert verdict.startswith("not yet")
    assert says in verdict


@pytest.mark.parametrize("check", CHECKS)
def test_none_is_not_answered(check):
    assert check(None) == UNANSWERED


@pytest.mark.parametrize("check", CHECKS)
def test_text_is_refused_without_an_error(check):
    assert "a number is needed" in check("many")


def test_the_crossover_falls_with_the_batch():
    assert lab20.crossover_context("smollm2-135m", 1) == pytest.approx(269_030_016 / 23_040)
    assert lab20.crossover_context("smollm2-135m", 8) == pytest.approx(269_030_016 / 23_040 / 8)
