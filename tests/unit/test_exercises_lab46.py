"""Answers of the exercises of lab 46 follow from the package, and slips are named."""

import pytest

from inferlab.exercises import lab46
from inferlab.exercises.judge import UNANSWERED

CHECKS = (lab46.check_capacity, lab46.check_limit, lab46.check_loop, lab46.check_requests,
          lab46.check_trap)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_an_empty_answer_is_no_mistake(check):
    assert check(None) == UNANSWERED


def test_right_answers():
    assert lab46.check_capacity(1 / (0.04 + 100 * 0.026 / 32)).startswith("correct")
    assert lab46.check_limit((1 - 10.5 / 30) / (0.04 + 100 * 0.0005)).startswith("correct")
    assert lab46.check_loop(4).startswith("correct")
    assert lab46.check_requests(838).startswith("correct")
    assert lab46.check_trap("repeated seed").startswith("correct")
    assert lab46.rate_for_limit() < lab46.paper_capacity()


@pytest.mark.parametrize(
    ("check", "answer", "words"),
    [
        (lab46.check_capacity, 32 / 2.6, "prompts are read"),
        (lab46.check_capacity, 1 / 2.64, "share a decode step"),
        (lab46.check_limit, lab46.paper_capacity(), "that is the capacity"),
        (lab46.check_limit, 0.65 / 0.05, "stands still"),
        (lab46.check_loop, 0.25, "not yet"),
        (lab46.check_requests, 459, "if none is late"),
        (lab46.check_requests, 662, "one late"),
        (lab46.check_trap, "open loop", "shows the queue"),
        (lab46.check_trap, "x", "choose from"),
    ],
)
def test_slips_are_named(check, answer, words):
    assert words in check(answer)
