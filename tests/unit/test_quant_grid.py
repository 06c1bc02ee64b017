"""Rounding to a grid: bounds, fixed points, and what a finer grid is worth."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.quant.formats import FORMATS, WeightFormat, get_format
from inferlab.quant.grid import Quantized, encode, quantization_error, quantize

ODD = WeightFormat("int4-g16", 4, 16, False)
FORMAT_NAMES = sorted(FORMATS)
BF16_ROUNDING = 2.0**-8  # largest relative step between neighbouring bfloat16 numbers


@st.composite
def weights(draw, inputs=128):
    """Normal weights of any size, some with large channels, outliers or a common shift."""
    seed, rows = draw(st.integers(0, 2**31)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator) * 10.0 ** draw(st.integers(-12, 8))
    if draw(st.booleans()):
        weight[0, draw(st.integers(0, inputs - 1))] *= 100
    if draw(st.booleans()):
        weight = weight + weight.abs().max() * draw(st.sampled_from([-1, 0.5, 3]))
    return weight


@settings(max_examples=60)
@given(weights(), st.sampled_from(FORMAT_NAMES))
def test_no_weight_moves_further_than_half_a_step(weight, name):
    format = FORMATS[name]
    quantized = quantize(weight, format)
    groups = weight.unflatten(1, (quantized.scales.shape[1], -1))
    error = (quantized.dequantize().unflatten(1, groups.shape[1:]) - groups).abs()
    largest = (groups.abs().amax() if format.group_size == 0 else groups.abs().amax(-1))[..., None]
    # A grid whose scale and offset were rounded to bfloat16 may end a little short of the group.
    bound = 0.5 * quantized.scales[..., None] + 2 * BF16_ROUNDING * largest
    assert (error <= bound * (1 + 1e-5)).all()


@settings(max_examples=60)
@given(weights(), st.sampled_from([n for n in FORMAT_NAMES if FORMATS[n].symmetric]))
def test_symmetric_errors_stay_within_half_a_step_of_int4_and_a_half_of_int8(weight, name):
    quantized = quantize(weight, FORMATS[name])
    groups = weight.unflatten(1, (quantized.scales.shape[1], -1))
    error = (quantized.dequantize().unflatten(1, groups.shape[1:]) - groups).abs()
    assert (error <= 0.5001 * quantized.scales[..., None]).all()


@settings(max_examples=60)
@given(weights(), st.sampled_from(FORMAT_NAMES))
def test_scales_and_offsets_are_bfloat16_numbers_and_codes_in_range(weight, name):
    quantized = quantize(weight, FORMATS[name])
    low, high = quantized.format.code_range
    assert quantized.codes.dtype == torch.int8 and quantized.codes.shape == weight.shape
    assert low <= quantized.codes.min() and quantized.codes.max() <= high
    for numbers in (quantized.scales, quantized.offsets):
        if numbers is not None:
            assert numbers.dtype == torch.float32
            assert torch.equal(numbers, numbers.bfloat16().float())
    assert (quantized.offsets is None) == quantized.format.symmetric


@settings(max_examples=60)
@given(weights(), st.sampled_from([n for n in FORMAT_NAMES if FORMATS[n].symmetric]))
def test_symmetric_requantizing_changes_nothing(weight, name):
    once = quantize(weight, FORMATS[name])
    again = quantize(once.dequantize(), FORMATS[name])
    assert torch.equal(once.dequantize(), again.dequantize())


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from(["int4-g32", "int4-g64", "int4-g128"]))
def test_asymmetric_requantizing_of_groups_around_zero_changes_nothing(seed, name):
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(seed))
    once = quantize(weight, FORMATS[name])
    again = quantize(once.dequantize(), FORMATS[name])
    torch.testing.assert_close(again.dequantize(), once.dequantize(), rtol=1e-6, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([4, 8]), st.booleans())
def test_a_scale_for_fewer_weights_errs_less(seed, bits, symmetric):
    generator = torch.Generator().manual_seed(seed)
    channels = torch.logspace(-0.5, 0.5, 16)[:, None]
    outliers = 1 + 3 * (torch.rand(16, 512, generator=generator) > 0.995)
    weight = torch.randn(16, 512, generator=generator) * channels * outliers
    errors = [
        quantization_error(weight, quantize(weight, WeightFormat("x", bits, size, symmetric)))
        for size in (0, None, 128, 32)
    ]
    ratios = [error["relative_error_ratio"] for error in errors]
    # A coarser grid may happen to fall better, but never by much.
    assert all(finer < 1.1 * coarser for coarser, finer in itertools.pairwise(ratios))
    assert ratios[-1] < 0.8 * ratios[0]


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("value", [0.0, 0.5, -0.0703125, 3.0])
def test_constant_rows_that_bfloat16_holds_are_exact(name, value):
    weight = torch.full((3, 128), value)
    if name != "int8-tensor":
        weight[1] = -2 * value
    quantized = quantize(weight, FORMATS[name])
    assert torch.equal(quantized.dequantize(), weight)
    assert quantization_error(weight, quantized) == {
        "relative_error_ratio": 0.0, "snr_db": math.inf, "largest_error": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_magnitudes_too_small_for_a_scale_become_zero(name):
    quantized = quantize(torch.full((2, 128), 1e-42) * torch.linspace(-1, 1, 128), FORMATS[name])
    assert quantized.dequantize().abs().max() < 1e-36


def test_a_group_of_which_all_weights_round_alike_stays_where_it_is():
    weight = 1 + torch.linspace(0, 0.01, 64)[None]  # all code 7, and 7 scales are no bfloat16
    once = quantize(weight, get_format("int4-g32-sym"))
    assert once.codes.unique().tolist() == [7]
    assert torch.equal(quantize(once.dequantize(), once.format).dequantize(), once.dequantize())


def test_a_row_by_hand():
    weight = torch.tensor([[-7.0, 3.4, 1.6, 7.0], [0.0, 15.0, 7.0, 8.0]])
    symmetric = quantize(weight, WeightFormat("x", 4, None, True))
    assert symmetric.codes[0].tolist() == [-7, 3, 2, 7] and symmetric.scales[0].item() == 1
    asymmetric = quantize(weight, WeightFormat("x", 4, None, False))
    assert asymmetric.codes[1].tolist() == [-8, 7, -1, 0]
    assert (asymmetric.scales[1].item(), asymmetric.offsets[1].item()) == (1, 8)
    found = quantization_error(weight[:1], quantize(weight[:1], symmetric.format))
    assert found["largest_error"] == pytest.approx(0.4)
    size, moved = (49 + 3.4**2 + 1.6**2 + 49) ** 0.5, (2 * 0.4**2) ** 0.5
    assert found["relative_error_ratio"] == pytest.approx(moved / size)
    assert 10 ** (found["snr_db"] / 20) == pytest.approx(size / moved)


def test_codes_can_be_found_on_a_given_grid():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight, ODD)
    assert quantized.shape == (4, 64) and quantized.scales.shape == (4, 4)
    codes = encode(weight, quantized.scales, quantized.offsets, ODD)
    assert torch.equal(codes, quantized.codes)
    on_grid = Quantized(codes, quantized.scales, quantized.offsets, ODD).dequantize()
    again = encode(on_grid, quantized.scales, quantized.offsets, ODD)
    assert torch.equal(again, codes)
    assert quantized.dequantize(torch.bfloat16).dtype == torch.bfloat16


def test_low_precision_weights_are_rounded_from_their_own_values():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    format = get_format("int4-g32")
    assert torch.equal(quantize(weight, format).codes, quantize(weight.float(), format).codes)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.tensor([[1.0, math.inf] * 32]), "inf, NaN"),
        (torch.tensor([[1.0, math.nan] * 32]), "inf, NaN"),
        (torch.tensor([[1.0, 3e38] * 32]), "magnitudes"),
        (torch.ones(2, 33), "do not divide into groups of 32"),
        (torch.ones(64), "not empty"),
        (torch.ones(0, 64), "not empty"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_line(weight, says):
    with pytest.raises(UserError, match=says) as caught:
        quantize(weight, get_format("int4-g32"))
    assert "\n" not in str(caught.value)
