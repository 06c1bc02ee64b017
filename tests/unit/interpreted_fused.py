"""The fused kernels in Triton's interpreter, on a CPU; `test_fused.py` runs this file.

Judged against the same operations in float64: what a kernel may be off by is one rounding of its
result and the rounding of float32 sums.
"""

import os

import pytest
import torch
from fused_examples import (
    DTYPES,
    ROTATIONS,
    check,
    check_norm,
    check_product,
    check_rotation,
    check_swiglu,
    normal,
    store,
)

from inferlab.errors import UserError
from inferlab.kernels import fused_reference, linear, norm, rope_store, swiglu, tiles

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_fused.py instead"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 576), (3, 35), (7, 64), (1025, 20)])
@pytest.mark.parametrize("add", [True, False])
def test_norm(dtype, rows, size, add):
    check_norm(norm.add_rms_norm, dtype, rows, size, add)


def test_norm_of_strided_rows_of_zeros_and_of_large_numbers():
    wide, weight = normal(4, 2, 40), normal(40, seed=2)
    wide[1] = 0
    wide[2] *= 1e18
    x = wide[:, 1]
    normed, _ = norm.add_rms_norm(x, None, weight, 1e-6)
    check(normed, fused_reference.add_rms_norm(x.double(), None, weight.double(), 1e-6)[0])
    other, total = norm.add_rms_norm(x, wide[:, 0], weight, 1e-6)
    assert torch.equal(total, x + wide[:, 0]) and other.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner"), [(1, 1536), (3, 51), (5, 2049)])
def test_swiglu(dtype, rows, inner):
    check_swiglu(swiglu.swiglu, dtype, rows, inner)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("shape", ROTATIONS)
def test_rotate_and_store(dtype, dense, shape):
    check_rotation(rope_store.rotate_and_store, dtype, dense, shape)


def test_slots_are_rows_of_the_store():
    view = store(False, 2, 1, 4, 8, torch.float32)
    positions = torch.tensor([[-1, 0, 5], [3, 4, 11]])
    tables = view.block_tables.tolist()
    expected = [-1, tables[0][0] * 4, tables[0][1] * 4 + 1,
                tables[1][0] * 4 + 3, tables[1][1] * 4, tables[1][2] * 4 + 3]  # fmt: skip
    assert view.slots(positions).tolist() == expected
    dense = store(True, 3, 1, 4, 8, torch.float32)
    assert dense.slots(torch.tensor([[2]])).tolist() == [2, 6, 10]


def test_head_sizes_that_are_no_power_of_two_are_refused():
    view = store(True, 1, 1, 4, 10, torch.float32)
    angles = torch.zeros(1, 10)
    with pytest.raises(UserError, match="power of two, not 10"):
        rope_store.rotate_and_store(torch.zeros(1, 30), angles, angles, view, torch.tensor([0]))


PRODUCTS = [(1, 70, 576), (3, 33, 100), (9, 64, 35), (16, 20, 64), (17, 24, 48)]
EXTRAS = [("bias",), ("residual",), ("gated", "bias", "residual")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", PRODUCTS)
@pytest.mark.parametrize("extras", EXTRAS)
def test_products(dtype, shape, extras):
    check_product(linear.small_linear, dtype, shape, extras)


def test_float16():
    check_norm(norm.add_rms_norm, torch.float16, 2, 100, True)
    check_swiglu(swiglu.swiglu, torch.float16, 2, 70)
    check_rotation(rope_store.rotate_and_store, torch.float16, False, ROTATIONS[2])
    check_product(linear.small_linear, torch.float16, (3, 33, 100), EXTRAS[-1])


@pytest.mark.parametrize("splits", [1, 2, 3, 5])
@pytest.mark.parametrize("gated", [False, True])
def test_every_split_adds_up_and_leaves_the_counters_at_zero(splits, gated):
    tile = tiles.Tile(32, 8, 4, 2, splits, block_k=64)
    extras = ("residual", "gated") if gated else ("residual",)
    for _ in range(2):
        check_product(linear.small_linear, torch.float32, (3, 70, 640), extras, tile=tile)
    assert not tiles.counters(torch.empty(0)).any()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_candidates_fit_and_cover_the_inputs(gated, itemsize):
    for shape in ((4096, 4096), (14336, 4096), (576, 576), (128256, 4096)):
        found = linear.candidates(1, *shape, 132, itemsize, gated)
        assert len(found) == len(set(found)) >= 2
        for tile in found:
            stage = tile.block_k * (tile.block_n * (1 + gated) + tile.block_m) * itemsize
            assert stage * tile.num_stages <= 227 * 1024
            blocks = -(-shape[1] // tile.block_k)
            assert (tile.splits - 1) * -(-blocks // tile.splits) < blocks, "a program without work"


def test_what_the_product_does_not_take_is_refused():
    x = torch.zeros(2, 8)
    for weight, gated in ((torch.zeros(4, 9), False), (torch.zeros(8, 4).t(), False),
                          (torch.zeros(3, 8), True)):  # fmt: skip
        with pytest.raises(UserError, match="as many inputs on both sides"):
            linear.small_linear(x, weight, gated=gated)
    with pytest.raises(UserError, match="as many gates"):
        swiglu.swiglu(torch.zeros(1, 3))
    with pytest.raises(UserError, match="too long for one program"):
        norm.add_rms_norm(torch.zeros(1, 2**16 + 1), None, torch.zeros(2**16 + 1), 1e-5)
