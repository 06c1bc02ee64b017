"""Compare a reader's answer with the reference and say what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from inferlab.units import format_number

UNANSWERED = "not answered yet: replace None and run the cell again"


def judge_number(
    answer: float | None,
    expected: float,
    unit: str = "",
    *,
    tolerance: float = 0.02,
    slips: Mapping[str, float] | None = None,
) -> str:
    """`correct`, or by what factor `answer` is off and which known slip gives that value.

    `tolerance` is relative. `slips` maps an explanation to the value that this slip produces.
    """
    if answer is None:
        return UNANSWERED
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return f"a number is needed, not {type(answer).__name__}"
    if not math.isfinite(answer):
        return "a finite number is needed"
    if math.isclose(answer, expected, rel_tol=tolerance):
        return f"correct: {format_number(expected)} {unit}".rstrip()
    for explanation, value in (slips or {}).items():
        if math.isclose(answer, value, rel_tol=tolerance):
            return f"not yet: {explanation}"
    if answer == 0 or expected == 0 or (answer < 0) != (expected < 0):
        given = f"{format_number(answer)} {unit}".rstrip()
        return f"not yet: {given} has the wrong sign or is zero"
    factor = answer / expected
    word = "too large" if factor > 1 else "too small"
    return f"not yet: {format_number(max(factor, 1 / factor))} times {word}"


def judge_choice(answer: object, expected: object, reasons: Mapping[object, str]) -> str:
    """`correct`, or why `answer` is not it; `reasons` explains each of the wrong choices."""
    if answer is None:
        return UNANSWERED
    if answer == expected:
        return f"correct: {expected}"
    choices = ", ".join(str(choice) for choice in [expected, *reasons])
    return f"not yet: {reasons.get(answer, f'choose from {choices}')}"
