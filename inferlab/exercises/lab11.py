"""Checks of the exercises of lab 11: spacing, casts, 8-bit prefill, smoothing, codes, the phase.

Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

from inferlab.exercises.judge import judge_choice, judge_number
from inferlab.hardware.datasheets import get_datasheet
from inferlab.models.config import get_config
from inferlab.models.cost import head_params, layer_matmul_params, prefill_cost

LARGE = "llama-3.1-8b"
VALUE = 1000.0  # exercise 1: where the spacing is asked
MANTISSA_BITS = {"float16": 10, "bfloat16": 7}
PROMPT_LEN = 4096  # exercise 3
INPUT_RANGE, WEIGHT_RANGE, ALPHA = 64.0, 0.25, 0.5  # exercise 4
OUTLIER_RATIO = 50  # exercise 5: the largest channel over the one that is asked about


def spacing(value: float, mantissa_bits: int) -> float:
    """Distance of neighbouring numbers around `value` (1 or more): 2^(floor(log2 v) - bits)."""
    return 2.0 ** (int(value).bit_length() - 1 - mantissa_bits)


def check_spacing(answer: float | None) -> str:
    """Exercise 1: distance between neighbouring bfloat16 numbers near 1000."""
    exact = spacing(VALUE, MANTISSA_BITS["bfloat16"])
    return judge_number(
        answer,
        exact,
        slips={
            "that is float16, which has more mantissa bits": spacing(VALUE, 10),
            "that is the spacing between 1 and 2; it doubles with each power of two": 2.0**-7,
            "512 <= 1000 < 1024, so the power of two is the one below": 2 * exact,
        },
    )


def autocast_ratio() -> float:
    """Weight bytes that a step under autocast moves over those of a bf16 step, nothing cached."""
    read_float32, write_bfloat16, read_bfloat16 = 4, 2, 2
    return (read_float32 + write_bfloat16 + read_bfloat16) / read_bfloat16


def check_autocast(answer: float | None) -> str:
    """Exercise 2: how many times the weight bytes of bf16 does a step under autocast move?"""
    return judge_number(
        answer,
        autocast_ratio(),
        "times",
        slips={
            "the converted weights are written, and then read by the product": 2.0,
            "the product reads the converted weights too": 3.0,
            "those are bytes a weight: divide by the two of bf16": 8.0,
        },
    )


def prefill_speedup(prompt_len: int = PROMPT_LEN) -> float:
    """Most that FP8 products gain in a prefill on an H200, attention left in bf16 (datasheet)."""
    config, rates = get_config(LARGE), get_datasheet("h200").flops_per_s
    flops = prefill_cost(config, "bfloat16", 1, prompt_len).flops
    matmul = _product_flops(prompt_len)
    slow, fast = rates["bfloat16"], rates["float8_e4m3fn"]
    return flops / slow / (matmul / fast + (flops - matmul) / slow)


def _product_flops(prompt_len: int) -> float:
    config = get_config(LARGE)
    layers = prompt_len * config.num_layers * layer_matmul_params(config)
    return 2.0 * (layers + head_params(config))


def check_prefill(answer: float | None) -> str:
    """Exercise 3: most that FP8 products gain in a compute-bound prefill of 4096 tokens."""
    rates = get_datasheet("h200").flops_per_s
    whole = rates["float8_e4m3fn"] / rates["bfloat16"]
    config = get_config(LARGE)
    flops = prefill_cost(config, "bfloat16", 1, PROMPT_LEN).flops
    share = _product_flops(PROMPT_LEN) / flops
    return judge_number(
        answer,
        prefill_speedup(),
        "times",
        tolerance=0.01,
        slips={
            "attention stays in bf16 and is part of the prefill": whole,
            "that is the share of the products; the rest does not get faster": share,
            "a time is asked for both parts, not a mean of their rates": 1 + share * (whole - 1),
        },
    )


def smoothed_range(
    input_range: float = INPUT_RANGE, weight_range: float = WEIGHT_RANGE, alpha: float = ALPHA
) -> float:
    """Largest magnitude of the channel's activations after SmoothQuant's migration."""
    return input_range / (input_range**alpha / weight_range ** (1 - alpha))


def check_smoothing(answer: float | None) -> str:
    """Exercise 4: range of a channel's activations after migration with alpha 0.5."""
    scale = INPUT_RANGE**ALPHA / WEIGHT_RANGE ** (1 - ALPHA)
    return judge_number(
        answer,
        smoothed_range(),
        slips={
            "that is the scale; the activations are divided by it": scale,
            "the weights' range is part of the scale": INPUT_RANGE ** (1 - ALPHA),
            "the activations are divided by the scale, the weights multiplied": INPUT_RANGE * scale,
        },
    )


def codes_left(outlier_ratio: float = OUTLIER_RATIO) -> int:
    """int8 codes (-127..127) that a channel uses whose range is 1/ratio of the largest one."""
    return 2 * round(127 / outlier_ratio) + 1


def check_codes(answer: float | None) -> str:
    """Exercise 5: codes left for a channel beside an outlier 50 times as large."""
    highest = round(127 / OUTLIER_RATIO)
    return judge_number(
        answer,
        codes_left(),
        "codes",
        tolerance=0.001,
        slips={
            "codes are whole numbers: the largest value is rounded to one": 255 / OUTLIER_RATIO,
            "negative values and zero have codes too": highest,
            "zero has a code of its own": 2 * highest,
        },
    )


_PHASE_REASONS = {
    "int4 weight-only": "its weights are widened before the product, which stays as slow as bf16; "
    "reading fewer bytes helps a step that waits for them, and a long prefill does not",
    "autocast": "it converts the weights at each step, and computes in bf16 like the baseline",
    "float16": "as many bytes and the same rate as bf16",
}


def check_format(answer: str | None) -> str:
    """Exercise 6: which format speeds up a service that reads 4096 tokens and answers one?"""
    return judge_choice(answer, "W8A8", _PHASE_REASONS)
