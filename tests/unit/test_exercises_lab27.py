"""The checks of lab 27 accept right answers, say what is wrong, and wait for an answer."""

import pytest

from inferlab.exercises import lab27
from inferlab.exercises.judge import UNANSWERED

CHECKS = [lab27.check_size, lab27.check_answers, lab27.check_graphs, lab27.check_padding,
          lab27.check_change]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lab27.check_size, 700 * 5e-6 * 4e12),
        (lab27.check_answers, 24 / (0.014 - 0.011) / 200),
        (lab27.check_graphs, 32 * 5),
        (lab27.check_padding, 1 - 1153 / 1280),
        (lab27.check_change, "another token"),
    ],
)
def test_right_answers(check, answer):
    assert check(answer).startswith("correct")


@pytest.mark.parametrize(
    ("check", "answer", "words"),
    [
        (lab27.check_size, 7e9, "takes two"),
        (lab27.check_size, 14.0, "not in gigabytes"),
        (lab27.check_answers, 8000, "not of answers"),
        (lab27.check_answers, 24 / 0.014 / 200, "the difference"),
        (lab27.check_graphs, 32, "batch size"),
        (lab27.check_graphs, 4096 * 5, "whole bucket"),
        (lab27.check_padding, 1153 / 1280, "needed"),
        (lab27.check_padding, 1280 / 1153 - 1, "what is read"),
        (lab27.check_change, "a growing cache", "buckets"),
        (lab27.check_change, "rain", "choose from"),
    ],
)
def test_slips_are_named(check, answer, words):
    assert check(answer).startswith("not yet") and words in check(answer)


@pytest.mark.parametrize("check", CHECKS)
def test_an_open_exercise_says_so(check):
    assert check(None) == UNANSWERED
