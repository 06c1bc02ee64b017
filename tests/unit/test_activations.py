"""Rounding activations to 8 bits: half a step at most, rows apart, calibration checked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.quant.activations import CODE_RANGES, quantize_rows, static_scale

FP8 = torch.float8_e4m3fn
DTYPES = list(CODE_RANGES)


@st.composite
def activations(draw):
    """A few rows of very different size, float32 or bfloat16."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, inputs = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    x = torch.randn(rows, inputs, generator=generator)
    x = x * 10.0 ** torch.tensor(
        draw(st.lists(st.integers(-20, 20), min_size=rows, max_size=rows))
    ).view(-1, 1)
    return x.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


@given(activations(), st.sampled_from(DTYPES))
def test_every_number_moves_by_half_a_step_at_most(x, dtype):
    codes, scales = quantize_rows(x, dtype)
    assert codes.dtype == dtype and scales.shape == (len(x), 1) and scales.dtype == torch.float32
    error = (codes.double() * scales.double() - x.double()).abs()
    # int8: half a code. E4M3: half of the 2**-3 between its numbers, 2**-9 below its normal ones.
    step = torch.ones_like(error) if dtype == torch.int8 else codes.double().abs() * 2.0**-3
    step = step.clamp_min(1.0 if dtype == torch.int8 else 2.0**-9) * scales.double()
    assert (error <= 0.5 * step * (1 + 1e-5)).all()


@given(activations(), st.sampled_from(DTYPES))
def test_the_largest_number_of_a_row_takes_the_largest_code(x, dtype):
    codes, _ = quantize_rows(x, dtype)
    assert (codes.float().abs().amax(-1) == CODE_RANGES[dtype][1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_stays_zero_and_finite(dtype):
    x = torch.zeros(3, 8)
    x[1, 2] = 5.0
    codes, scales = quantize_rows(x, dtype)
    assert not codes[0].float().any() and not codes[2].float().any()
    assert torch.isfinite(scales).all() and (codes.float() * scales)[1, 2] == pytest.approx(5.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_row_leaves_the_others_alone(dtype, bad):
    x = torch.randn(3, 8)
    alone = quantize_rows(x[2:], dtype)
    x[1, 4] = bad
    codes, scales = quantize_rows(x, dtype)
    assert torch.equal(codes[2:].float(), alone[0].float()) and torch.equal(scales[2:], alone[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_static_scale_cuts_off_what_is_larger(dtype):
    scale = static_scale(2.0, dtype)
    x = torch.tensor([[2.0, -2.0, 100.0, -100.0, 0.0]])
    codes, scales = quantize_rows(x, dtype, scale)
    least, largest = CODE_RANGES[dtype]
    assert codes.float().tolist() == [[largest, -largest, largest, least, 0.0]]
    assert scales.tolist() == [pytest.approx(scale)]


@pytest.mark.parametrize("absmax", [math.inf, math.nan, 0.0, -1.0])
def test_calibration_that_says_nothing_is_refused(absmax):
    with pytest.raises(UserError, match="check the calibration data"):
        static_scale(absmax)
