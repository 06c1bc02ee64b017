import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.quant.smooth import migration_scales


@given(alpha=st.floats(0, 1), seed=st.integers(0, 1000))
def test_ranges_after_migration_are_the_weighted_middle(alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(9, generator=generator) * 100 + 0.1
    weights = torch.rand(9, generator=generator) + 0.1
    scales = migration_scales(inputs, weights, alpha)
    middle = inputs ** (1 - alpha) * weights ** (1 - alpha)
    assert torch.allclose(inputs / scales, middle, rtol=1e-4)
    assert torch.allclose(weights * scales, inputs**alpha * weights**alpha, rtol=1e-4)


def test_at_a_half_both_sides_have_one_range():
    inputs, weights = torch.tensor([100.0, 1.0]), torch.tensor([1.0, 4.0])
    scales = migration_scales(inputs, weights, 0.5)
    assert torch.allclose(inputs / scales, weights * scales)
    assert scales.tolist() == [10.0, 0.5]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_dead_channel_stays(alpha):
    zero, one = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])
    assert migration_scales(zero, one, alpha).tolist() == [1.0, 1.0, 1.0]


def test_bad_ranges_are_refused():
    good = torch.ones(3)
    for bad in ([1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0], [1.0, -1.0, 1.0]):
        with pytest.raises(UserError, match="activation ranges hold inf, NaN"):
            migration_scales(torch.tensor(bad), good)
        with pytest.raises(UserError, match="weight ranges hold inf, NaN"):
            migration_scales(good, torch.tensor(bad))
    with pytest.raises(UserError, match="one length"):
        migration_scales(torch.ones(4), good)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="alpha is"):
            migration_scales(good, good, alpha)
