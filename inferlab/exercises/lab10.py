"""Checks of the exercises of lab 10: codes, bytes, what the rest of a step hides, and a crossover.

Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from inferlab.exercises.judge import UNANSWERED, judge_choice, judge_number
from inferlab.quant.formats import get_format
from inferlab.quantcost import KernelLaw, RestLaw, crossover_batch_size, speedup

WEIGHTS = (-0.66, 0.13, 0.37, 1.4)  # exercise 1: one group
BYTES_FORMAT, IN_FEATURES = "int4-g64", 4096  # exercise 2
PLAIN = KernelLaw(read_s=6e-3, row_s=4e-4, overlaps=False)  # exercises 3 and 4, assumed
LOW_BIT = KernelLaw(read_s=2e-3, row_s=1.2e-3, overlaps=True)
REST = RestLaw(step_s=2e-3, row_s=0.0, token_s=0.0)
QUESTIONS, WORSE, BETTER = 200, 12, 6  # exercise 5


def codes(weights: Sequence[float] = WEIGHTS, bits: int = 4) -> tuple[int, ...]:
    """Symmetric codes of one group: the largest magnitude gets 2^(bits - 1) - 1."""
    largest = 2 ** (bits - 1) - 1
    scale = max(abs(w) for w in weights) / largest
    return tuple(round(w / scale) for w in weights)


def check_codes(answer: Sequence[int] | None) -> str:
    """Exercise 1: symmetric int4 codes of the group `WEIGHTS`."""
    if answer is None:
        return UNANSWERED
    expected = codes()
    if isinstance(answer, str) or not isinstance(answer, Sequence) or len(answer) != len(expected):
        return f"{len(expected)} codes are needed, as in (0, 0, 0, 0)"
    given = tuple(answer)
    if given == expected:
        return f"correct: {', '.join(map(str, expected))}"
    if given == tuple(code + 8 for code in expected):
        return "not yet: those are the stored codes of a kernel that counts from 0"
    if given == codes(bits=8):
        return "not yet: int4 has codes from -7 to 7 here"
    if given == tuple(math.trunc(w / (1.4 / 7)) for w in WEIGHTS):
        return "not yet: round to the nearest step, do not cut off"
    wrong = [i + 1 for i, (a, b) in enumerate(zip(given, expected, strict=True)) if a != b]
    return f"not yet: code {', '.join(map(str, wrong))} of {len(expected)} differs"


def check_bytes(answer: float | None) -> str:
    """Exercise 2: bits a weight of int4 in groups of 64, with a bf16 scale and offset each."""
    exact = 8 * get_format(BYTES_FORMAT).bytes_per_weight(IN_FEATURES)
    return judge_number(
        answer,
        exact,
        "bits",
        tolerance=0.005,
        slips={
            "each group also stores a scale and an offset": 4.0,
            "an asymmetric group has an offset beside its scale": 4.25,
            "that is groups of 32": 5.0,
            "bits are asked, not bytes": exact / 8,
        },
    )


def check_hidden_gain(answer: float | None) -> str:
    """Exercise 3: speed-up of the whole step at batch size 1 with the assumed laws."""
    products = PLAIN.seconds(1) / LOW_BIT.seconds(1)
    return judge_number(
        answer,
        speedup(PLAIN, LOW_BIT, REST, 1, 1),
        "times",
        slips={
            "that is the gain of the products; the rest of the step stays": products,
            "the row has to be computed too, behind the reading": (
                (PLAIN.read_s + REST.step_s) / (LOW_BIT.read_s + REST.step_s)
            ),
            "that is the time of the low-bit step over the plain one": 1
            / speedup(PLAIN, LOW_BIT, REST, 1, 1),
        },
    )


def check_crossover(answer: float | None) -> str:
    """Exercise 4: batch size beyond which the low-bit step of exercise 3 takes longer."""
    exact = crossover_batch_size(PLAIN, LOW_BIT)
    return judge_number(
        answer,
        exact,
        "sequences",
        tolerance=0.03,
        slips={
            "that is where the low-bit kernel turns compute-bound; it is still faster there": (
                LOW_BIT.turning_rows
            ),
            "the plain kernel's rows cost something too": PLAIN.read_s / LOW_BIT.row_s,
            "the rest is the same on both sides: it cancels": (
                (PLAIN.read_s + REST.step_s) / (LOW_BIT.row_s - PLAIN.row_s)
            ),
        },
    )


def lost_in_errors(n: int = QUESTIONS, worse: int = WORSE, better: int = BETTER) -> float:
    """Share of questions lost, in standard errors of the paired difference."""
    lost = (worse - better) / n
    return lost / (math.sqrt(worse + better - (worse - better) ** 2 / n) / n)


def check_flips(answer: float | None) -> str:
    """Exercise 5: how many standard errors is the loss of 12 against 6 answers of 200 from zero?"""
    unpaired = (WORSE - BETTER) / QUESTIONS / math.sqrt(2 * 0.25 / QUESTIONS)
    return judge_number(
        answer,
        lost_in_errors(),
        "standard errors",
        tolerance=0.03,
        slips={
            "paired: only the answers that changed vary, not all of them": unpaired,
            "that is the share lost, not over its standard error": (WORSE - BETTER) / QUESTIONS,
        },
    )


def check_trap(answer: str | None) -> str:
    """Exercise 6: why int4 in groups of 32 looks lossless on the embedded model."""
    return judge_choice(
        answer,
        "b",
        {
            "a": "the same format loses a great deal on a copy that computes the same function",
            "c": "the text is the same for all three copies",
            "d": "the packed kernels agree with the dequantized product, so they hide no loss",
        },
    )
