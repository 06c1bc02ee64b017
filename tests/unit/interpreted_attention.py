"""The attention kernels in Triton's interpreter; `test_attention_kernels.py` runs this file.

In a process of its own, as `interpreted_kernels.py`.
"""

import math
import os

import pytest
import torch
from attention_examples import check_attention, dense, numbers, paged

from inferlab.errors import UserError
from inferlab.kernels import split_kv, tiles
from inferlab.kernels.attention_reference import naive_attention
from inferlab.kernels.flash_attention import flash_attention
from inferlab.kernels.split_kv import decode_attention
from inferlab.kvcache.view import StoreView

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_attention_kernels.py instead"
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("new", "total", "num_kv", "repeats", "head_dim", "dtype"),
    [
        (1, 1, 1, 1, 64, BRAIN), (1, 77, 2, 3, 64, BRAIN), (17, 17, 1, 2, 128, HALF),
        (5, 70, 2, 1, 64, FULL), (65, 130, 1, 3, 64, BRAIN), (129, 129, 1, 1, 64, BRAIN),
        (33, 33, 2, 2, 24, FULL), (3, 40, 1, 8, 128, BRAIN), (2, 9, 1, 1, 256, FULL),
    ],
)  # fmt: skip
@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention_on_awkward_shapes(new, total, num_kv, repeats, head_dim, dtype, causal):
    queries = numbers(2, new, num_kv * repeats, head_dim).to(dtype)
    keys = numbers(2, num_kv, total, head_dim, seed=1).to(dtype)
    values = numbers(2, num_kv, total, head_dim, seed=2).to(dtype)
    found = flash_attention(queries, keys, values, causal)
    check_attention(found, naive_attention(queries, keys, values, causal), values)


def test_flash_attention_takes_strides_and_looks_at_nothing_else():
    """Keys in a longer store, with NaN behind; queries as a slice of a joint projection."""
    joint = numbers(2, 20, 6 * 64).bfloat16()
    queries = joint[..., : 4 * 64].unflatten(-1, (4, 64))
    store = numbers(2, 2, 50, 64, seed=1).bfloat16()
    store[:, :, 33:] = math.nan
    keys, values = store[:, :, :33], store.flip(3)[:, :, :33]
    found = flash_attention(queries, keys, values)
    check_attention(found, naive_attention(queries, keys, values), values)


def test_large_scores_do_not_overflow():
    queries = 300 * numbers(1, 4, 2, 64).bfloat16()
    keys, values = 300 * numbers(1, 2, 40, 64).bfloat16(), numbers(1, 2, 40, 64).bfloat16()
    found = flash_attention(queries, keys, values)
    check_attention(found, naive_attention(queries, keys, values), values)
    view = dense(keys, values, [40])
    check_attention(decode_attention(queries[:, 3], view)[:, None], found[:, 3:].double(), values)


@pytest.mark.parametrize(
    ("num_kv", "repeats", "head_dim", "dtype", "size"),
    [
        (1, 1, 64, BRAIN, None), (3, 3, 64, BRAIN, None), (2, 8, 128, HALF, None),
        (1, 5, 24, FULL, None), (1, 40, 64, BRAIN, None), (1, 70, 16, FULL, None),
        (1, 1, 64, FULL, 8), (2, 3, 128, BRAIN, 8), (2, 3, 64, BRAIN, 16), (1, 4, 128, HALF, 16),
        (1, 7, 64, BRAIN, 32), (3, 2, 24, FULL, 32), (1, 8, 128, BRAIN, 128), (2, 6, 64, FULL, 128),
        (1, 2, 16, FULL, 5),
    ],
)  # fmt: skip
def test_decode_attention_of_rows_of_different_length(num_kv, repeats, head_dim, dtype, size):
    lengths = [1, 129, 40, 77, 0]
    queries = numbers(5, num_kv * repeats, head_dim).to(dtype)
    keys = numbers(5, num_kv, 130, head_dim, seed=1).to(dtype)
    values = numbers(5, num_kv, 130, head_dim, seed=2).to(dtype)
    view = paged(keys, values, lengths, size) if size else dense(keys, values, lengths)
    found = decode_attention(queries, view)
    assert found.shape == queries.shape and found.dtype == dtype
    for row, length in enumerate(lengths):
        if length == 0:
            assert not found[row].any()
            continue
        exact = naive_attention(
            queries[row : row + 1, None], keys[row : row + 1, :, :length],
            values[row : row + 1, :, :length],
        )  # fmt: skip
        check_attention(found[row], exact[0, 0], values)


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [None, 16])
def test_every_split_adds_up_and_leaves_the_counters_at_zero(splits, size):
    lengths = [300, 257, 3]
    queries, keys = numbers(3, 6, 64).bfloat16(), numbers(3, 2, 300, 64, seed=1).bfloat16()
    values = numbers(3, 2, 300, 64, seed=2).bfloat16()
    view = paged(keys, values, lengths, size) if size else dense(keys, values, lengths)
    found = decode_attention(queries, view, splits)
    for row, length in enumerate(lengths):
        exact = naive_attention(
            queries[row : row + 1, None], keys[row : row + 1, :, :length],
            values[row : row + 1, :, :length],
        )  # fmt: skip
        check_attention(found[row], exact[0, 0], values)
    assert torch.equal(decode_attention(queries, view, splits), found)
    assert not tiles.counters(queries).any()


def test_a_store_of_any_strides_but_the_last():
    queries, keys = numbers(2, 4, 64), numbers(2, 2, 48, 64, seed=1)
    expected = decode_attention(queries.float(), dense(keys.float(), keys.float(), [48, 9]))
    turned = keys.float().transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.cat([queries, queries], dim=1).float()
    found = decode_attention(wide[:, :4], dense(turned, keys.float(), [48, 9]))
    assert torch.equal(found, expected)
    view = paged(keys.float(), keys.float(), [48, 48], 8)
    expected = decode_attention(queries.float(), view)
    tables = view.block_tables.t().contiguous().t()
    lengths = view.lengths[:1].expand(2)
    found = decode_attention(queries.float(), StoreView(view.keys, view.values, lengths, tables))
    assert torch.equal(found, expected)


def test_more_tiles_than_can_be_counted_are_not_split():
    queries, keys = numbers(3, 2, 16).float(), numbers(3, 2, 256, 16, seed=1).float()
    view = dense(keys, keys, [256, 200, 130])
    expected = decode_attention(queries, view, 1)
    assert split_kv.choose_splits(tiles.COUNTERS + 1, 4096, 64, 132) == 1
    assert torch.allclose(decode_attention(queries, view, 2), expected, atol=1e-6)
    for splits in (0, 129):
        with pytest.raises(UserError, match="not from 1 to 128: leave it out"):
            decode_attention(queries, view, splits)


def test_what_the_kernels_do_not_take_is_refused():
    queries, keys = numbers(1, 2, 64).float(), numbers(1, 2, 8, 64).float()
    with pytest.raises(UserError, match="not float64, float64, float64"):
        decode_attention(queries.double(), dense(keys.double(), keys.double(), [8]))
    with pytest.raises(UserError, match="not bfloat16, float32, float32"):
        flash_attention(queries[:, None].bfloat16(), keys, keys, causal=False)
    with pytest.raises(UserError, match="too large: at most 256"):
        decode_attention(
            numbers(1, 2, 512).float(), dense(*[numbers(1, 2, 8, 512).float()] * 2, [8])
        )
    with pytest.raises(UserError, match="last dimension must have stride 1"):
        turned = numbers(1, 2, 64, 8).float().transpose(2, 3)
        decode_attention(queries, dense(turned, turned, [8]))
    with pytest.raises(UserError, match="for each of 1 sequences"):
        decode_attention(queries, StoreView(keys, keys, torch.tensor([8, 8])))
    with pytest.raises(UserError, match="store of 1 sequences cannot serve 2"):
        decode_attention(torch.cat([queries] * 2), StoreView(keys, keys, torch.tensor([8, 8])))
    with pytest.raises(UserError, match="no multiple"):
        decode_attention(numbers(1, 3, 64).float(), dense(keys, keys, [8]))
    with pytest.raises(UserError, match="cannot be the last of 8 positions"):
        flash_attention(numbers(1, 9, 2, 64).float(), keys, keys)
