"""Checks of exercises: right answers pass, wrong ones say what differs."""

import pytest

from inferlab.exercises import judge_choice, judge_number
from inferlab.exercises.judge import UNANSWERED


def test_no_answer_is_not_a_wrong_answer():
    assert judge_number(None, 3.0) == UNANSWERED
    assert judge_choice(None, "memory", {}) == UNANSWERED


def test_an_answer_within_the_tolerance_is_correct():
    assert judge_number(3.5, 3.49, "ms") == "correct: 3.49 ms"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (6.98, "bf16 has two bytes"),
        (34.9, "10.0 times too large"),
        (0.349, "10.0 times too small"),
        (-3.49, "wrong sign"),
        (float("nan"), "finite"),
        ("3.49", "a number is needed, not str"),
        (True, "a number is needed, not bool"),
    ],
)
def test_a_wrong_answer_says_what_differs(answer, words):
    assert words in judge_number(answer, 3.49, "ms", slips={"bf16 has two bytes": 6.98})


def test_a_wrong_choice_gets_its_reason():
    reasons = {"compute": "a decode step does two FLOPs a weight"}
    assert judge_choice("memory", "memory", reasons) == "correct: memory"
    assert "two FLOPs" in judge_choice("compute", "memory", reasons)
    assert "choose from memory, compute" in judge_choice("disk", "memory", reasons)
