import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.quant.awq import scales_from_importance, search_scales
from inferlab.quant.formats import FORMATS, get_format


def example(seed=0, size=64):
    """A weight [32, size] and inputs with a few loud channels."""
    generator = torch.Generator().manual_seed(seed)
    loud = torch.randn(size, generator=generator).mul(1.5).exp()
    weight = torch.randn(32, size, generator=generator)
    return weight, torch.randn(100, size, generator=generator) * loud


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "int4-g128"])
def test_loud_channels_gain_from_scaling(name):
    weight, inputs = example()
    found = search_scales(weight, inputs, get_format(name))
    assert found.error <= found.unscaled_error
    if name.startswith("int4"):
        assert found.alpha > 0 and found.error < 0.9 * found.unscaled_error
    assert found.scales.shape == (64,)
    assert (found.scales.max() * found.scales.min()).item() == pytest.approx(1, rel=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 8))
def test_the_search_never_does_worse_than_rounding_to_nearest(seed, steps):
    weight, inputs = example(seed, 32)
    found = search_scales(weight, inputs, get_format("int4-g32"), steps)
    assert found.error <= found.unscaled_error
    assert found.alpha in [step / steps for step in range(steps + 1)]


def test_even_inputs_need_no_scaling():
    weight, _ = example()
    inputs = torch.ones(10, 64)
    found = search_scales(weight, inputs, get_format("int4-g32"))
    assert found.alpha == 0 and torch.equal(found.scales, torch.ones(64))


def test_importance_may_come_from_more_tokens_than_the_sample():
    weight, inputs = example()
    importance = torch.rand(64) + 0.5
    found = search_scales(weight, inputs, get_format("int4-g32"), importance=importance)
    expected = scales_from_importance(importance, found.alpha)
    assert torch.equal(found.scales, expected)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_zero_and_constant_weights_and_dead_channels(value):
    _, inputs = example()
    inputs[:, 5] = 0
    found = search_scales(torch.full((8, 64), value), inputs, get_format("int4-g32"))
    assert found.error == found.unscaled_error == 0 and found.alpha == 0
    found = search_scales(example()[0], inputs, get_format("int4-g32"))
    assert torch.isfinite(found.scales).all() and (found.scales > 0).all()


def test_bad_input_is_refused():
    weight, inputs = example()
    format = get_format("int4-g32")
    for bad in (float("nan"), float("inf")):
        broken = inputs.clone()
        broken[3, 3] = bad
        with pytest.raises(UserError, match="calibration inputs hold inf or NaN"):
            search_scales(weight, broken, format)
        broken = weight.clone()
        broken[3, 3] = bad
        with pytest.raises(UserError, match="inf, NaN"):
            search_scales(broken, inputs, format)
    with pytest.raises(UserError, match="at least one token"):
        search_scales(weight, inputs[:0], format)
    with pytest.raises(UserError, match="has 64 inputs"):
        search_scales(weight, inputs[:, :32], format)
    with pytest.raises(UserError, match="one number per input"):
        search_scales(weight, inputs, format, importance=torch.ones(3))
    with pytest.raises(UserError, match="give 1 or more"):
        search_scales(weight, inputs, format, steps=0)
    with pytest.raises(UserError, match="do not divide"):
        search_scales(weight[:, :48], inputs[:, :48], format)
