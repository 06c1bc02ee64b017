"""Exercises of lab 41: the references by another way, and what slips are told."""

import pytest

from inferlab.continuous.law import expected_gain
from inferlab.exercises import lab41
from inferlab.exercises.judge import UNANSWERED
from inferlab.lengths import Lengths


def test_references_by_another_way():
    assert lab41.idle_share() == pytest.approx((130 + 120 + 110) / 560)
    # answers whose longest of eight is three means, in the law of the package
    mix = [Lengths(1, 51)] * 4
    assert expected_gain(mix, 8, 8e-3, 1e-3) == 1
    assert lab41.law_gain() == pytest.approx((8 * 150 + 8 * 50) / (8 * 50 + 8 * 50))
    assert lab41.average_factor() == pytest.approx((1.6 * 3.0) ** 0.5)
    assert lab41.stall_ratio() == pytest.approx(532 / 84)


@pytest.mark.parametrize(
    ("check", "right", "wrong", "words"),
    [
        (lab41.check_idle, lab41.idle_share(), 1 - lab41.idle_share(), "in use"),
        (lab41.check_law, lab41.law_gain(), 3.0, "the limit"),
        (lab41.check_factor, lab41.average_factor(), 2.3, "does not multiply back"),
        (lab41.check_chunk, lab41.stall_ratio(), 8.0, "in both gaps"),
        (lab41.check_regime, "answers of one length", "large batches", "longer"),
    ],
)
def test_answers_are_judged(check, right, wrong, words):
    assert check(None) == UNANSWERED
    assert check(right).startswith("correct")
    assert words in check(wrong)
