"""The fused kernels in Triton's interpreter, on a CPU; `test_fused.py` runs this file.

Judged against the same operations in float64: what a kernel may be off by is one rounding of its
result and the rounding of float32 sums.
"""

import os

import pytest
import torch
from tiny_models import tiny

from inferlab.errors import UserError
from inferlab.kernels import fused_reference, linear, norm, rope_store, swiglu, tiles
from inferlab.kvcache.view import StoreView
from inferlab.models.config import RopeScaling
from inferlab.models.layers import rope_table

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_fused.py instead"
DTYPES = (torch.float32, torch.bfloat16)
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # half a step, as a share


def normal(*shape, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def check(found, exact, slack=0.0):
    """Off by one rounding to the dtype, and `slack` (of float32 sums), at most."""
    error = (found.double() - exact).abs()
    allowed = exact.abs() * (ROUNDING[found.dtype] * 1.01 + 2.0**-21) + slack + 1e-30
    assert (error <= allowed).all(), (error / allowed).max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 576), (3, 35), (7, 64), (1025, 20)])
@pytest.mark.parametrize("add", [True, False])
def test_norm(dtype, rows, size, add):
    x, weight = normal(rows, size, dtype=dtype), normal(size, seed=2, dtype=dtype)
    residual = normal(rows, size, seed=1, dtype=dtype) if add else None
    normed, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    if add:
        assert torch.equal(total, x + residual)
    else:
        assert total is x
    exact, _ = fused_reference.add_rms_norm(total.double(), None, weight.double(), 1e-5)
    assert normed.dtype == dtype
    check(normed, exact, slack=exact.abs() * 2.0**-21)


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
    gate_up = normal(rows, 2 * inner, dtype=dtype, scale=3.0)
    gate_up[0, :2] = torch.tensor([-200.0, 200.0])
    found = swiglu.swiglu(gate_up)
    assert found.dtype == dtype and found.shape == (rows, inner)
    check(found, fused_reference.swiglu(gate_up.double()), slack=1e-6)


def store(dense, batch, num_kv, block_size, head_dim, dtype):
    """A store with strides of its own: a dense one, or blocks dealt out in a mixed order."""
    if dense:
        keys = torch.full((batch, num_kv, block_size, head_dim), 9.0, dtype=dtype)
        return StoreView(keys, keys.clone(), torch.zeros(batch, dtype=torch.int32))
    width = 3
    both = torch.full((2, batch * width + 2, block_size, num_kv, head_dim), 9.0, dtype=dtype)
    order = torch.randperm(batch * width + 2, generator=torch.Generator().manual_seed(4))
    tables = order[: batch * width].view(batch, width).int()
    keys, values = both[0].transpose(1, 2), both[1].transpose(1, 2)  # [N, G, P, D]
    return StoreView(keys, values, torch.zeros(batch, dtype=torch.int32), tables)


SCALED = RopeScaling(factor=8.0, original_max_context_len=32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(
    ("batch", "new", "num_q", "num_kv", "head_dim", "norms"),
    [(1, 1, 9, 3, 64, False), (3, 1, 7, 1, 128, True), (2, 5, 4, 4, 16, True),
     (5, 13, 6, 2, 8, False)],
)  # fmt: skip
def test_rotate_and_store(dtype, dense, batch, new, num_q, num_kv, head_dim, norms):
    config = tiny(head_dim=head_dim, rope_theta=500.0, rope_scaling=SCALED)
    starts = torch.arange(batch)[:, None] * 2
    positions = starts + torch.arange(new)
    if new > 1:
        positions[0] -= 2  # two padded columns
    view = store(dense, batch, num_kv, 32 if dense else 8, head_dim, dtype)
    expected = StoreView(view.keys.double(), view.values.double(), view.lengths, view.block_tables)
    slots = view.slots(positions)
    angles = rope_table(config, 64, torch.float32, "cpu").to(dtype)
    cosines, sines = angles[positions.flatten().clamp(min=0)].chunk(2, dim=-1)
    qkv = normal(batch * new, (num_q + 2 * num_kv) * head_dim, dtype=dtype)
    weights = [normal(head_dim, seed=seed, dtype=dtype) for seed in (5, 6)] if norms else [None] * 2
    exact = qkv.double()
    wanted = fused_reference.rotate_and_store(
        exact, cosines.double(), sines.double(), expected, slots,
        *(None if weight is None else weight.double() for weight in weights), 1e-6, keep_keys=True,
    )  # fmt: skip
    kept = qkv.clone()
    for given, keep in ((qkv.clone(), False), (kept, True)):
        queries = rope_store.rotate_and_store(
            given, cosines, sines, view, slots, *weights, 1e-6, keep_keys=keep
        )
        assert keep or torch.equal(given, qkv)
        slack = 2.0**-20
        check(queries, wanted, slack)
        check(view.keys, expected.keys, slack)
        assert torch.equal(view.values, expected.values.to(dtype))
    check(kept, exact, slack)


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "channels", "inputs"), PRODUCTS)
@pytest.mark.parametrize("extras", ["bias", "residual", "all"])
def test_products(dtype, rows, channels, inputs, extras):
    gated = extras == "all"
    x = normal(rows, inputs, dtype=dtype)
    weight = normal(channels * (1 + gated), inputs, seed=1, dtype=dtype, scale=0.1)
    bias = normal(weight.shape[0], seed=2, dtype=dtype) if extras in ("bias", "all") else None
    with_residual = extras in ("residual", "all")
    residual = normal(rows, channels, seed=3, dtype=dtype) if with_residual else None
    exact = fused_reference.linear(
        x.double(), weight.double(), *(None if t is None else t.double() for t in (bias, residual)),
        gated,
    )  # fmt: skip
    found = linear.small_linear(x, weight, bias, residual, gated)
    assert found.dtype == dtype and found.shape == (rows, channels)
    if rows > linear.MOST_ROWS:  # rounded after each operation
        assert torch.allclose(found.double(), exact, rtol=4 * ROUNDING[dtype], atol=0.05)
        return
    size = (x.double().abs() @ weight.double().abs().t()).max()
    check(found, exact, slack=size * (1 + size * gated) * 2.0**-23)


@pytest.mark.parametrize("splits", [1, 2, 3, 5])
@pytest.mark.parametrize("gated", [False, True])
def test_every_split_adds_up_and_leaves_the_counters_at_zero(splits, gated):
    x, weight = normal(3, 640), normal(140, 640, seed=1, scale=0.1)
    residual = normal(3, 70 if gated else 140, seed=2)
    tile = tiles.Tile(32, 8, 4, 2, splits, block_k=64)
    exact = fused_reference.linear(
        x.double(), weight.double(), None, residual.double(), gated=gated
    )
    for _ in range(2):
        found = linear.small_linear(x, weight, None, residual, gated, tile)
        check(found, exact, slack=1e-4)
    assert not tiles.counters(x).any()


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
