import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.quant.formats import get_format
from inferlab.quant.grid import quantization_error, quantize
from inferlab.quant.rotation import hadamard, random_orthogonal, random_permutation


def is_orthogonal(matrix):
    eye = torch.eye(len(matrix), dtype=torch.float64)
    return torch.allclose(matrix @ matrix.T, eye, atol=1e-12)


@given(size=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_random_matrices_are_orthogonal_and_the_same_each_time(size, seed):
    for make in (random_orthogonal, random_permutation):
        matrix = make(size, seed)
        assert matrix.dtype == torch.float64 and is_orthogonal(matrix)
        assert torch.equal(matrix, make(size, seed))


@pytest.mark.parametrize("size", [1, 2, 12, 20, 24, 64, 144, 240, 576, 960, 1536])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_hadamard_matrix_has_entries_of_one_size(size, seed):
    matrix = hadamard(size, seed)
    assert is_orthogonal(matrix)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5))


@pytest.mark.parametrize("size", [3, 6, 18, 36, 60, 28, 896])
def test_a_size_without_a_construction_says_what_to_use(size):
    with pytest.raises(UserError, match=f"size {size} is known.*random_orthogonal"):
        hadamard(size)


@pytest.mark.parametrize("make", [hadamard, random_orthogonal, random_permutation])
@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_impossible_sizes_are_refused(make, size):
    with pytest.raises(UserError, match="cannot be made"):
        make(size)


def test_a_permutation_moves_channels_whole():
    x = torch.arange(6.0, dtype=torch.float64)
    moved = x @ random_permutation(6, 1)
    assert not torch.equal(moved, x) and torch.equal(moved.sort().values, x)


@pytest.mark.parametrize("make", [hadamard, random_orthogonal])
def test_spreading_an_outlier_channel_makes_rounding_finer(make):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 7] *= 50
    format = get_format("int4-channel")
    before = quantization_error(weight, quantize(weight, format))["relative_error_ratio"]
    turned = weight @ make(64, 0).float()
    after = quantization_error(turned, quantize(turned, format))["relative_error_ratio"]
    assert after < 0.8 * before
