"""Attention written out: against one head at a time, over blocks, and what is refused."""

import math

import pytest
import torch
from attention_examples import numbers, paged

from inferlab.errors import UserError
from inferlab.kernels.attention_reference import gather, naive_attention, paged_attention
from inferlab.kvcache.view import StoreView


@pytest.mark.parametrize(("new", "total"), [(1, 1), (1, 7), (5, 5), (3, 8)])
@pytest.mark.parametrize("causal", [True, False])
def test_naive_attention_is_one_weighted_mean_a_head(new, total, causal):
    queries, keys, values = numbers(2, new, 6, 8), numbers(2, 2, total, 8), numbers(2, 2, total, 8)
    found = naive_attention(queries, keys, values, causal)
    for row in range(2):
        for token in range(new):
            for head in range(6):
                seen = total - new + token + 1 if causal else total
                scores = keys[row, head // 3, :seen] @ queries[row, token, head] / math.sqrt(8)
                expected = torch.softmax(scores, 0) @ values[row, head // 3, :seen]
                assert torch.allclose(found[row, token, head], expected)


def test_naive_attention_in_the_dtype_of_its_inputs():
    tensors = [numbers(1, 4, 2, 16).bfloat16(), *(numbers(1, 2, 4, 16).bfloat16() for _ in "kv")]
    found = naive_attention(*tensors, dtype=None)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), naive_attention(*tensors), atol=0.05)


@pytest.mark.parametrize("size", [1, 4, 8, 16])
def test_blocks_give_what_the_dense_store_gives(size):
    lengths = [1, 9, 16]
    queries, keys, values = numbers(3, 6, 8), numbers(3, 2, 16, 8), numbers(3, 2, 16, 8, seed=1)
    found = paged_attention(queries, paged(keys, values, lengths, size))
    for row, length in enumerate(lengths):
        expected = naive_attention(
            queries[row : row + 1, None], keys[row : row + 1, :, :length],
            values[row : row + 1, :, :length],
        )  # fmt: skip
        assert torch.allclose(found[row], expected[0, 0])


def test_a_dense_store_is_one_block_a_sequence():
    keys, values = numbers(4, 2, 16, 8), numbers(4, 2, 16, 8, seed=1)
    queries, lengths = numbers(3, 2, 8), [16, 3, 7]
    keys[1, :, 3:] = math.nan
    values[1, :, 3:] = math.inf
    view = StoreView(keys, values, torch.tensor(lengths, dtype=torch.int32))
    found = paged_attention(queries, view)
    assert torch.allclose(found, paged_attention(queries, paged(keys[:3], values[:3], lengths, 4)))
    assert gather(view)[0].data_ptr() == keys.data_ptr()
    assert keys[1, :, 3:].isnan().all(), "the store itself is not touched"


def test_a_sequence_without_positions_gives_zeros():
    keys, values = numbers(2, 2, 8, 8), numbers(2, 2, 8, 8)
    found = paged_attention(numbers(2, 2, 8), paged(keys, values, [0, 5], 4))
    assert not found[0].any() and found[1].isfinite().all() and found[1].any()


def test_what_does_not_fit_is_refused():
    queries, keys = numbers(1, 3, 4, 8), numbers(1, 2, 2, 8)
    with pytest.raises(UserError, match="3 new tokens cannot be the last of 2 positions"):
        naive_attention(queries, keys, keys)
    with pytest.raises(UserError, match="no multiple"):
        naive_attention(queries, *(numbers(1, 3, 4, 8) for _ in "kv"))
    with pytest.raises(UserError, match="heads of 8 numbers, keys of 4"):
        naive_attention(queries, *(numbers(1, 2, 4, 4) for _ in "kv"))
    with pytest.raises(UserError, match="the same shape"):
        naive_attention(queries, numbers(1, 2, 4, 8), numbers(1, 2, 5, 8))
    with pytest.raises(UserError, match="no position to attend to"):
        naive_attention(queries, *(numbers(1, 2, 0, 8) for _ in "kv"), causal=False)
