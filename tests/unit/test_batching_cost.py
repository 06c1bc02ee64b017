"""Knees and padding: closed forms against brute force, and limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny

from inferlab import roofline
from inferlab.batching.cost import (
    idle_rows_ratio,
    knee_of_lines,
    measured_knee,
    packed_prefill_cost,
    padded_prefill_cost,
    padding_waste_ratio,
    predict_prefill_s,
    predict_service_s,
    predicted_knee,
    prefill_flops,
    reaches_knee,
    step_lines,
)
from inferlab.errors import UserError
from inferlab.models.config import get_config
from inferlab.models.cost import prefill_cost
from inferlab.roofline import Ceilings

H200 = Ceilings(4.8e12, 989e12, source="datasheet")
BIG = get_config("llama-3.1-8b")


@given(
    fixed=st.floats(0.001, 1), slope=st.floats(1e-5, 0.1), later=st.floats(0, 0.5),
    steeper=st.floats(1, 20),
)  # fmt: skip
def test_the_knee_of_lines_is_where_power_is_largest(fixed, slope, later, steeper):
    lines = [(fixed, slope), (fixed * later, slope * steeper)]
    sizes = np.geomspace(1, 1e6, 4001)
    seconds = np.maximum(*(a + b * sizes for a, b in lines))
    best = sizes[(sizes / seconds**2).argmax()]
    assert knee_of_lines(lines) == pytest.approx(best, rel=0.01)


def test_one_line_has_its_knee_at_half_of_the_greatest_throughput():
    knee = knee_of_lines([(0.1, 0.02)])
    assert knee == pytest.approx(5)
    assert knee / (0.1 + 0.02 * knee) == pytest.approx(0.5 / 0.02)


def test_without_overheads_and_context_the_knee_is_the_ridge():
    ridge = roofline.ridge_batch_size(BIG, "bfloat16", H200, 1)
    assert predicted_knee(BIG, "bfloat16", 1, H200) == pytest.approx(ridge)
    assert 150 < ridge < 350


def test_a_long_context_ends_the_flat_part_before_the_arithmetic():
    assert roofline.ridge_batch_size(BIG, "bfloat16", H200, 4000) == float("inf")
    knees = [predicted_knee(BIG, "bfloat16", s, H200) for s in (1, 1000, 4000)]
    assert knees[0] > knees[1] > knees[2] > 1
    (fixed, slope), _ = step_lines(BIG, "bfloat16", 4000, H200)
    assert knees[2] == pytest.approx(fixed / slope)


def test_the_measured_knee_lies_between_sizes_or_at_the_end():
    line = {b: 0.1 + 0.02 * b for b in (1, 2, 4, 8, 16)}
    assert measured_knee(line) == pytest.approx(5)
    assert reaches_knee(line)
    flat = dict.fromkeys((1, 2, 4, 8), 0.1)
    assert measured_knee(flat) == 8 and not reaches_knee(flat)
    steep = {1: 0.1, 2: 0.2, 4: 0.4}
    assert measured_knee(steep) == 1


def test_what_has_no_knee():
    for table in ({}, {1: 0.1}, {1: 0.1, 2: 0.0}, {0: 0.1, 2: 0.2}):
        with pytest.raises(UserError, match="knee"):
            measured_knee(table)


def test_padding_by_hand():
    assert padding_waste_ratio([10, 10]) == 0
    assert padding_waste_ratio([1, 1, 1, 13]) == pytest.approx(1 - 16 / 52)
    assert idle_rows_ratio([2, 8]) == pytest.approx(1 - 8 / 14)
    assert idle_rows_ratio([1, 1]) == 0 and idle_rows_ratio([1, 3]) == 0.5
    for lengths in ([], [0, 3]):
        with pytest.raises(UserError):
            padding_waste_ratio(lengths)


@pytest.mark.parametrize("config", [tiny(), BIG])
def test_equal_prompts_cost_the_same_padded_and_packed(config):
    padded = padded_prefill_cost(config, "bfloat16", [7] * 5)
    packed = packed_prefill_cost(config, "bfloat16", [7] * 5)
    assert padded == packed == prefill_cost(config, "bfloat16", 5, 7)


def test_unequal_prompts_cost_more_padded():
    lengths = [3, 50, 7]
    padded = prefill_flops(BIG, "bfloat16", lengths, "padded")
    packed = prefill_flops(BIG, "bfloat16", lengths, "packed")
    assert padded / packed == pytest.approx(150 / 60, rel=0.2)
    assert padded > prefill_cost(BIG, "bfloat16", 3, 50).flops  # pairs above the diagonal as well
    slow = Ceilings(1e9, 1e9)
    times = {h: predict_prefill_s(BIG, "bfloat16", lengths, h, slow) for h in ("padded", "packed")}
    assert times["padded"] > 2 * times["packed"]
    reading = Ceilings(1e9, 1e18)  # where weights are all, three prompts read them three times
    alone = predict_prefill_s(BIG, "bfloat16", lengths, "alone", reading)
    together = predict_prefill_s(BIG, "bfloat16", lengths, "packed", reading)
    assert alone == pytest.approx(3 * together, rel=0.01)
    with pytest.raises(UserError, match="padded, packed, alone"):
        predict_prefill_s(BIG, "bfloat16", lengths, "folded", slow)


def test_the_service_of_a_batch_is_its_prefill_and_its_steps():
    one = predict_service_s(BIG, "bfloat16", 4, 100, 1, H200, H200)
    assert one == pytest.approx(roofline.predict_ttft_s(BIG, "bfloat16", 4, 100, H200))
    many = predict_service_s(BIG, "bfloat16", 4, 100, 11, H200, H200)
    step = roofline.predict_tpot_s(BIG, "bfloat16", 4, 105, H200)
    assert many == pytest.approx(one + 10 * step)
