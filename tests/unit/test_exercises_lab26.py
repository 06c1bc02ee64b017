"""The checks of lab 26 accept right answers, say what is wrong, and wait for an answer."""

import pytest

from inferlab.exercises import lab26
from inferlab.exercises.judge import UNANSWERED

NUMBERS = [lab26.check_scores, lab26.check_norm_ratio, lab26.check_crossover, lab26.check_splits]

# Counted by hand: 32 query heads, 8 key/value heads; a SwiGLU of 1536 saves two passes of 2 bytes.
SCORES = 32 * 4096 * 4096 * 2
NORM = 42 / 8
ROWS = (15e-6 - 2 * 1e-6) * 20e9 / (2 * 2 * 1536)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lab26.check_scores, SCORES),
        (lab26.check_norm_ratio, NORM),
        (lab26.check_crossover, ROWS),
        (lab26.check_splits, 17),
        (lab26.check_saved, "launches"),
    ],
)
def test_right_answers_pass(check, answer):
    assert check(answer).startswith("correct")


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (lab26.check_scores, SCORES / 4, "every query head"),
        (lab26.check_scores, SCORES / 32, "one head"),
        (lab26.check_scores, SCORES / 2, "two bytes"),
        (lab26.check_scores, SCORES * 32, "one layer"),
        (lab26.check_norm_ratio, 9, "launches"),
        (lab26.check_norm_ratio, NORM / 3, "too small"),
        (lab26.check_crossover, 15e-6 * 20e9 / 6144, "launches too"),
        (lab26.check_crossover, ROWS * 2 / 3, "bytes saved"),
        (lab26.check_crossover, ROWS * 2, "two bytes"),
        (lab26.check_splits, 16, "round up"),
        (lab26.check_splits, 5, "query heads"),
        (lab26.check_splits, 132, "groups"),
        (lab26.check_saved, "memory traffic", "kilobyte"),
        (lab26.check_saved, "time", "choose from"),
    ],
)
def test_wrong_answers_hear_what_differs(check, answer, says):
    verdict = check(answer)
    assert verdict.startswith("not yet")
    assert says in verdict


@pytest.mark.parametrize("check", [*NUMBERS, lab26.check_saved])
def test_none_is_not_answered(check):
    assert check(None) == UNANSWERED


@pytest.mark.parametrize("check", NUMBERS)
def test_text_is_refused_without_an_error(check):
    assert "a number is needed" in check("many")
