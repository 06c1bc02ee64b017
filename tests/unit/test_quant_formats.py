"""Bytes of the weight formats, and what they refuse."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.quant.formats import FORMATS, WeightFormat, get_format


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int8", 1 + 2 / 512),
        ("int8-tensor", 1),
        ("int8-asym", 1 + 4 / 512),
        ("int4-g32", 0.5 + 4 / 32),
        ("int4-g32-sym", 0.5 + 2 / 32),
        ("int4-g64", 0.5 + 4 / 64),
        ("int4-g128", 0.5 + 4 / 128),
        ("int4-channel", 0.5 + 4 / 512),
    ],
)
def test_a_weight_takes_its_code_and_its_share_of_bf16_scale_and_offset(name, expected):
    assert get_format(name).bytes_per_weight(512) == expected


@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 500), st.integers(1, 40))
def test_the_bytes_of_a_matrix_are_those_of_its_weights(name, rows, groups):
    format, inputs = FORMATS[name], groups * 128
    per_weight = format.bytes_per_weight(inputs)
    once = 2 if format.group_size == 0 else 0
    assert format.matrix_bytes(rows, inputs) == pytest.approx(rows * inputs * per_weight + once)


@pytest.mark.parametrize(("bits", "symmetric", "expected"), [
    (4, True, (-7, 7)), (4, False, (-8, 7)), (8, True, (-127, 127)), (8, False, (-128, 127)),
])  # fmt: skip
def test_code_ranges(bits, symmetric, expected):
    assert WeightFormat("x", bits, 32, symmetric).code_range == expected


def test_unknown_formats_and_impossible_groups_say_what_to_use():
    with pytest.raises(UserError, match="known: int8, int8-tensor"):
        get_format("int3")
    with pytest.raises(UserError, match="576 inputs .* use int8 or .*int4-g64") as caught:
        get_format("int4-g128").num_groups(576)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="2 to 8 bits"):
        WeightFormat("x", 9, None, True)
    with pytest.raises(UserError, match="at least one weight"):
        WeightFormat("x", 4, -1, True)


def test_formats_need_no_torch():
    code = "import sys, inferlab.quant.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
