"""The checks of lab 01: right answers pass, known slips are named, None is not answered."""

import pytest

from inferlab.exercises import lab01
from inferlab.exercises.judge import UNANSWERED

RIGHT = [
    (lab01.check_tpot, (0.5 - 0.3) / 8),
    (lab01.check_vllm_tpot, 1e3 * (0.5 - 0.02) / 8),
    (lab01.check_requests, 4603),
    (lab01.check_hidden_stall, 0.01 * 6000 * (1 - 0.6) / 20),
    (lab01.check_lone_token, "excluded"),
]
WRONG = [
    (lab01.check_tpot, (0.5 - 0.3) / 9, "tokens - 1"),
    (lab01.check_tpot, (0.5 - 0.02) / 8, "empty chunk"),
    (lab01.check_tpot, (0.5 - 0.3) / 3, "gap between events"),
    (lab01.check_tpot, 0.5 / 9, "TTFT"),
    (lab01.check_tpot, 25.0, "milliseconds"),
    (lab01.check_vllm_tpot, 25.0, "even an empty one"),
    (lab01.check_vllm_tpot, 0.06, "milliseconds"),
    (lab01.check_requests, 459, "that is p99"),
    (lab01.check_requests, 1000, "no proof"),
    (lab01.check_requests, 2995, "95 % confidence"),
    (lab01.check_requests, 4590, "too small"),
    (lab01.check_hidden_stall, 3.0, "drain"),
    (lab01.check_hidden_stall, 12.0, "1 %"),
    (lab01.check_lone_token, "good", "vLLM"),
    (lab01.check_lone_token, "bad", "AIPerf"),
    (lab01.check_lone_token, "lost", "choose from"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer):
    assert check(answer).startswith("correct")


@pytest.mark.parametrize(("check", "answer", "why"), WRONG)
def test_wrong_answers_say_what_differs(check, answer, why):
    said = check(answer)
    assert said.startswith("not yet") and why in said


@pytest.mark.parametrize("check", [check for check, _ in RIGHT])
def test_none_is_not_answered(check):
    assert check(None) == UNANSWERED
