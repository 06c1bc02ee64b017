"""Judges of lab 10 know the answer, the slips, and say which is which."""

import pytest

from inferlab.exercises import lab10
from inferlab.exercises.judge import UNANSWERED

CHECKS = [getattr(lab10, name) for name in dir(lab10) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS)
def test_no_answer_is_not_wrong(check):
    assert check(None) == UNANSWERED


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lab10.check_codes, (-3, 1, 2, 7)),
        (lab10.check_bytes, 4.5),
        (lab10.check_hidden_gain, 2.1),  # (6 + 0.4 + 2) / (2 + 2)
        (lab10.check_crossover, 7.5),  # 6 + 0.4 B = 1.2 B
        (lab10.check_flips, 0.03 / ((18 - 0.18) ** 0.5 / 200)),
        (lab10.check_trap, "b"),
    ],
)
def test_answers_by_hand(check, answer):
    assert check(answer).startswith("correct")


@pytest.mark.parametrize(
    ("check", "slip", "words"),
    [
        (lab10.check_codes, (5, 9, 10, 15), "counts from 0"),
        (lab10.check_codes, (-3, 0, 1, 7), "do not cut off"),
        (lab10.check_codes, (-60, 12, 34, 127), "from -7 to 7"),
        (lab10.check_codes, (-3, 1, 2, 6), "code 4 of 4"),
        (lab10.check_codes, (1, 2), "4 codes are needed"),
        (lab10.check_codes, "abcd", "4 codes are needed"),
        (lab10.check_bytes, 4.25, "offset beside its scale"),
        (lab10.check_bytes, 4, "a scale and an offset"),
        (lab10.check_bytes, 0.5625, "not bytes"),
        (lab10.check_hidden_gain, 3.2, "the rest of the step stays"),
        (lab10.check_hidden_gain, 2.0, "computed too"),
        (lab10.check_crossover, 5 / 3, "still faster there"),
        (lab10.check_crossover, 5.0, "rows cost something too"),
        (lab10.check_crossover, 10.0, "it cancels"),
        (lab10.check_flips, 0.6, "paired"),
        (lab10.check_trap, "a", "computes the same function"),
    ],
)
def test_slips_are_named(check, slip, words):
    found = check(slip)
    assert words in found and not found.startswith("correct"), found
