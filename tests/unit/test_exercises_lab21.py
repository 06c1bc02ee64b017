"""The checks of lab 21 accept right answers, say what is wrong, and wait for an answer."""

import pytest

from inferlab.exercises import lab21
from inferlab.exercises.judge import UNANSWERED

CHECKS = [
    lab21.check_token_bytes, lab21.check_batch, lab21.check_remake, lab21.check_groups,
]  # fmt: skip

# Counted by hand from the published shapes, not by the package.
MQA_BYTES = 2 * 32 * 1 * 128 * 2
SEQUENCES = 64 * 2**30 // (2 * 32 * 8 * 128 * 2 * 8192)
PRODUCTS = 2 * (32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336) + 4096 * 128256)
REMAKE = 2 * 512 * 2048 * 8192 * 32 / PRODUCTS


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lab21.check_token_bytes, MQA_BYTES),
        (lab21.check_batch, SEQUENCES),
        (lab21.check_remake, REMAKE),
        (lab21.check_groups, 2.25),
    ],
)
def test_right_answers_pass(check, answer):
    assert check(answer).startswith("correct")


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (lab21.check_token_bytes, MQA_BYTES / 2, "keys and values"),
        (lab21.check_token_bytes, MQA_BYTES * 8, "as trained"),
        (lab21.check_token_bytes, MQA_BYTES * 32, "shares nothing"),
        (lab21.check_token_bytes, MQA_BYTES / 32, "every layer"),
        (lab21.check_batch, SEQUENCES * 2, "keys and values"),
        (lab21.check_batch, SEQUENCES / 4, "four query heads"),
        (lab21.check_remake, REMAKE / 2, "both"),
        (lab21.check_remake, REMAKE / 32, "every layer"),
        (lab21.check_remake, REMAKE * 4, "not 32"),
        (lab21.check_groups, 2.0, "rotated part"),
        (lab21.check_groups, 4.5, "a key and a value"),
        (lab21.check_groups, -1, "wrong sign"),
    ],
)
def test_wrong_answers_hear_what_differs(check, answer, says):
    verdict = check(answer)
    assert verdict.startswith("not yet")
    assert says in verdict


@pytest.mark.parametrize("check", CHECKS)
def test_none_is_not_answered_and_text_is_refused(check):
    assert check(None) == UNANSWERED
    assert "a number is needed" in check("many")
