"""Queries, keys and values for tests of attention; stores of blocks made from dense ones."""

import math

import torch

from inferlab.kvcache.view import StoreView


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paged(keys, values, lengths, size, seed=0):
    """Dense keys and values [B, G, S, D] in shuffled blocks, NaN beyond the lengths.

    The tables are one block too wide; what they do not need is -1.
    """
    batch, num_kv, total, head_dim = keys.shape
    width = math.ceil(total / size) + 1
    order = torch.randperm(batch * width, generator=torch.Generator().manual_seed(seed))
    tables = order.view(batch, width).int()
    stores = []
    for dense in (keys, values):
        store = torch.full((batch * width, num_kv, size, head_dim), math.nan, dtype=dense.dtype)
        for row, length in enumerate(lengths):
            for place in range(length):
                store[tables[row, place // size], :, place % size] = dense[row, :, place]
        stores.append(store)
    for row, length in enumerate(lengths):
        tables[row, math.ceil(length / size) :] = -1
    return StoreView(*stores, torch.tensor(lengths, dtype=torch.int32), tables)


def dense(keys, values, lengths):
    """Keys and values [B, G, S, D] as they are, NaN beyond the lengths."""
    keys, values = keys.clone(), values.clone()
    for row, length in enumerate(lengths):
        keys[row, :, length:] = math.nan
        values[row, :, length:] = math.nan
    return StoreView(keys, values, torch.tensor(lengths, dtype=torch.int32, device=keys.device))


def check_attention(found, exact, values):
    """Within the rounding of the dtype: of the weights, which sum to 1, and of the result.

    float32 keeps the scores' own rounding too, which grows with their size.
    """
    step = torch.finfo(found.dtype).eps
    largest = values[values.isfinite()].abs().max().double()
    error = (found.double() - exact.double()).abs()
    room = step * (exact.double().abs() + largest) if step > 1e-5 else 3e-6 * largest
    assert (error <= room).all(), f"off by {error.max():.3g}"
