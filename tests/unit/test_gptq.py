import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.quant.formats import FORMATS, get_format
from inferlab.quant.gptq import inverse_factor, quantize_gptq
from inferlab.quant.grid import encode, quantize


def correlated(tokens=512, size=64, seed=0):
    """Inputs [tokens, size] whose channels hang together and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator)
    sizes = torch.randn(size, generator=generator).exp()
    return torch.randn(tokens, size, generator=generator) @ mix * sizes


def normal(rows, columns, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def output_error(x, weight, quantized):
    return (x @ (weight - quantized.dequantize()).T).square().sum().item()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "int4-g128"])
def test_output_error_is_below_that_of_rounding_to_nearest(name):
    x, weight, format = correlated(), normal(48, 64), get_format(name)
    second = quantize_gptq(weight, x.T @ x, format)
    nearest = quantize(weight, format)
    assert output_error(x, weight, second) < 0.9 * output_error(x, weight, nearest)
    assert second.codes.dtype == torch.int8 and second.shape == (48, 64)
    assert second.scales.shape == nearest.scales.shape
    assert torch.equal(second.scales, second.scales.bfloat16().float())
    low, high = format.code_range
    assert second.codes.min() >= low and second.codes.max() <= high


@pytest.mark.parametrize("name", ["int8", "int8-tensor", "int4-g32", "int4-channel"])
def test_uncorrelated_channels_are_rounded_to_nearest(name):
    weight, format = normal(16, 64), get_format(name)
    quantized = quantize_gptq(weight, torch.diag(torch.rand(64) + 1), format)
    expected = quantize(weight, format)
    assert torch.equal(quantized.codes, expected.codes)
    assert torch.equal(quantized.dequantize(), expected.dequantize())


def one_column_at_a_time(weight, hessian, format):
    """Optimal brain surgeon, written out: the inverse Hessian shrinks with every column."""
    weight, inverse = weight.double().clone(), None
    hessian = hessian.double() + 0.01 * hessian.diagonal().double().mean() * torch.eye(len(hessian))
    grid = quantize(weight, format)
    codes = torch.zeros_like(grid.codes)
    for q in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[q:, q:])
        column = weight[:, q : q + 1]
        codes[:, q : q + 1] = encode(column, grid.scales, grid.offsets, format)
        error = column - codes[:, q : q + 1] * grid.scales
        weight[:, q:] -= error * inverse[0] / inverse[0, 0]
    return codes


@pytest.mark.parametrize("block", [1, 5, 16, 128])
def test_blocks_and_the_factor_only_save_time(block):
    x, weight, format = correlated(size=24), normal(8, 24), get_format("int8")
    hessian = x.T @ x / len(x)
    expected = one_column_at_a_time(weight, hessian, format)
    codes = quantize_gptq(weight, hessian, format, block=block).codes
    assert (codes != expected).float().mean() < 0.02  # ties fall either way
    assert (codes.int() - expected.int()).abs().max() <= 1


def test_a_block_never_cuts_a_group():
    x, weight, format = correlated(), normal(8, 64), get_format("int4-g32")
    expected = quantize_gptq(weight, x.T @ x, format, block=64)
    for block in (1, 33, 500):
        codes = quantize_gptq(weight, x.T @ x, format, block=block).codes
        assert (codes != expected.codes).float().mean() < 0.02


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), tokens=st.integers(1, 200))
def test_few_tokens_still_do_no_harm_on_those_tokens(seed, tokens):
    x, weight = correlated(tokens, 32, seed), normal(8, 32, seed)
    format = get_format("int4-g32")
    quantized = quantize_gptq(weight, x.T @ x, format)
    assert torch.isfinite(quantized.dequantize()).all()
    assert output_error(x, weight, quantized) < 1.1 * output_error(
        x, weight, quantize(weight, format)
    )


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
@pytest.mark.parametrize("name", ["int8", "int8-asym", "int4-g32", "int4-g32-sym"])
def test_zero_and_constant_weights_are_exact(value, name):
    x, weight = correlated(), torch.full((4, 64), value)
    assert torch.equal(quantize_gptq(weight, x.T @ x, get_format(name)).dequantize(), weight)


def test_dead_channels_are_rounded_to_nearest():
    x, weight = correlated(), normal(8, 64)
    x[:, [0, 13, 63]] = 0
    format = get_format("int8")
    quantized = quantize_gptq(weight, x.T @ x, format)
    for dead in (0, 13, 63):
        assert torch.equal(quantized.codes[:, dead], quantize(weight, format).codes[:, dead])
    assert output_error(x, weight, quantized) < output_error(x, weight, quantize(weight, format))


def test_a_singular_hessian_needs_damping():
    row = torch.rand(1, 32) + 1
    hessian = row.T @ row  # rank 1
    quantize_gptq(normal(4, 32), hessian, get_format("int4-g32"), damping=0.01)
    with pytest.raises(UserError, match="cannot be inverted with damping 0"):
        quantize_gptq(normal(4, 32), hessian, get_format("int4-g32"), damping=0)


def test_the_factor_is_that_of_the_inverse():
    x = correlated(size=20)
    hessian = x.T @ x / len(x)
    factor = inverse_factor(hessian, 20, damping=0.0)
    product = (factor.T @ factor) @ hessian
    assert torch.allclose(product, torch.eye(20), atol=1e-3)
    assert torch.equal(factor, factor.triu())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weights_and_hessians_are_refused(bad):
    x, weight, format = correlated(), normal(4, 64), get_format("int4-g32")
    hessian = x.T @ x
    broken = weight.clone()
    broken[2, 3] = bad
    with pytest.raises(UserError, match="inf, NaN"):
        quantize_gptq(broken, hessian, format)
    broken = hessian.clone()
    broken[2, 3] = bad
    with pytest.raises(UserError, match="Hessian holds inf, NaN"):
        quantize_gptq(weight, broken, format)


def test_wrong_shapes_and_settings_are_refused():
    weight, format = normal(4, 64), get_format("int4-g32")
    with pytest.raises(UserError, match=r"Hessian is \[32, 32\] and the layer has 64"):
        quantize_gptq(weight, torch.eye(32), format)
    with pytest.raises(UserError, match="all zero"):
        quantize_gptq(weight, torch.zeros(64, 64), format)
    with pytest.raises(UserError, match="do not divide into groups"):
        quantize_gptq(normal(4, 48), torch.eye(48), format)
    with pytest.raises(UserError, match="damping is"):
        quantize_gptq(weight, torch.eye(64), format, damping=-1)
    with pytest.raises(UserError, match="block of 0"):
        quantize_gptq(weight, torch.eye(64), format, block=0)
