"""Exercises of lab 40: right answers pass, known slips are named."""

import pytest

from inferlab.exercises import lab40
from inferlab.exercises.judge import UNANSWERED

ANSWERS = {
    lab40.check_knee: 16,
    lab40.check_wait: 0.4,
    lab40.check_padding: 2 / 3,
    lab40.check_hold: 0.375,
    lab40.check_regime: "low load",
}


@pytest.mark.parametrize(("check", "answer"), ANSWERS.items())
def test_right_answers_pass_and_none_is_asked_again(check, answer):
    assert check(answer).startswith("correct")
    assert check(None) == UNANSWERED


@pytest.mark.parametrize(
    ("check", "answer", "words"),
    [
        (lab40.check_knee, 2000, "a rate"),
        (lab40.check_knee, 1000, "throughput at the knee"),
        (lab40.check_wait, 0.8, "exponential"),
        (lab40.check_wait, 0.6, "together"),
        (lab40.check_wait, 1.6, "how many"),
        (lab40.check_padding, 1 / 3, "holds tokens"),
        (lab40.check_padding, 66.7, "percent"),
        (lab40.check_hold, 0.5, "first of a batch"),
        (lab40.check_hold, 0.25, "those that join"),
        (lab40.check_regime, "high load", "fill before"),
        (lab40.check_regime, "noise", "choose from"),
    ],
)
def test_slips_are_named(check, answer, words):
    assert words in check(answer)
