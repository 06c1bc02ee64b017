"""What does it cost to follow a block table instead of reading one run of memory? Cases to time.

Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from inferlab import roofline
from inferlab.decoding.graphs import captured
from inferlab.fitting import Fitted
from inferlab.hardware.probes import synchronize
from inferlab.kernels.attention import attend
from inferlab.kvcache import CacheShape, KVCache, PagedCache, make_cache
from inferlab.kvcache.view import StoreView
from inferlab.models.config import ModelConfig
from inferlab.models.cost import decode_cost, kv_cache_bytes
from inferlab.models.decoder import Decoder
from inferlab.models.placement import check_host_memory, dtype_name
from inferlab.pagingcost import gather_ratio, table_ratio
from inferlab.recorder import Case
from inferlab.timing import Run

DENSE = "static"
REPEATS = 3  # of which the fastest counts
CONSTANT = 0.01  # speed does not depend on the values


def shuffled_cache(
    config: ModelConfig, dtype: torch.dtype, device: torch.device | str, batch_size: int,
    context_len: int, steps: int, block_size: int, num_layers: int | None = None,
    kernel: str = "auto",
) -> PagedCache:  # fmt: skip
    """A store whose sequences of `context_len` positions lie in blocks in random order."""
    shape = cache_shape(config, batch_size, context_len + steps, num_layers)
    num_blocks = batch_size * -(-shape.capacity // block_size)
    size = shape.num_bytes(dtype) // (batch_size * shape.capacity) * num_blocks * block_size
    check_host_memory(size, "the cache of a case", torch.device(device))
    cache = PagedCache(shape, dtype, device, block_size, num_blocks, kernel)
    for store in (*cache.keys, *cache.values):
        store.fill_(CONSTANT)
    manager = cache.manager
    # Blocks given back in random order are lent out again in that order.
    for block in range(num_blocks):
        manager.allocate(("single", block), 1)
    for block in np.random.default_rng(0).permutation(num_blocks):
        manager.free(("single", int(block)))
    for row in range(batch_size):
        manager.allocate(row, context_len)
    return cache


def attention_case(
    config: ModelConfig, dtype: torch.dtype, device: str, batch_size: int, context_len: int,
    block_size: int | None, num_layers: int, kernel: str = "auto",
) -> Case:  # fmt: skip
    """Attention of one new token over `num_layers` layers and nothing else.

    `block_size` None: over a dense store. On a GPU our split-KV kernel reads both kinds, and one
    CUDA graph starts all layers; elsewhere PyTorch's attention, behind a gather for the paged one.
    `kernel` "gather" puts the gather there on a GPU too (parameter `cache`: "gathered").
    """

    def work() -> Callable[[], Any]:
        generator = torch.Generator(device).manual_seed(0)
        size = (batch_size, 1, config.num_q_heads, config.head_dim)
        queries = torch.randn(size, generator=generator, device=device).to(dtype)
        if block_size is None:
            return captured(_dense_work(config, queries, context_len, num_layers), device)
        cache = shuffled_cache(
            config, dtype, device, batch_size, context_len - 1, 1, block_size, num_layers, kernel
        )
        cache.begin(torch.full((batch_size, 1), context_len - 1, device=device), None)

        def paged() -> None:
            for layer in range(num_layers):
                cache.attend_stored(layer, queries, None)

        return captured(paged, device)

    moved = kv_cache_bytes(config, dtype_name(dtype), batch_size, context_len)
    ratio = predicted_ratio(config, dtype, device, block_size, kernel)
    kind = DENSE if block_size is None else "gathered" if kernel == "gather" else "paged"
    params = {
        "phase": "attention", "cache": kind, "block_size": block_size or 0,
        "model": config.name, "dtype": dtype_name(dtype), "batch_size": batch_size,
        "context_len": context_len, "num_layers": num_layers,
        "kv_bytes": moved * num_layers / config.num_layers,
    }  # fmt: skip
    return Case(_timed(work, device), params, {"over_dense_ratio": ratio})


def gather_case(
    config: ModelConfig, dtype: torch.dtype, device: str, batch_size: int, context_len: int,
    block_size: int, num_layers: int, read_bytes_per_s: float,
) -> Case:  # fmt: skip
    """The copy alone that a gather makes of `num_layers` layers: expected at the read bandwidth."""

    def work() -> Callable[[], Any]:
        cache = shuffled_cache(
            config, dtype, device, batch_size, context_len - 1, 1, block_size, num_layers, "gather"
        )
        cache.begin(torch.full((batch_size, 1), context_len - 1, device=device), None)

        def copy() -> None:
            for layer in range(num_layers):
                cache.gathered(layer)  # let go at once, as in a step

        return copy

    moved = kv_cache_bytes(config, dtype_name(dtype), batch_size, context_len)
    moved *= num_layers / config.num_layers
    params = {
        "phase": "gather", "cache": "gathered", "block_size": block_size, "model": config.name,
        "dtype": dtype_name(dtype), "batch_size": batch_size, "context_len": context_len,
        "num_layers": num_layers, "kv_bytes": moved,
    }  # fmt: skip
    run = _timed(work, device, "gather_s")
    return Case(run, params, {"gather_s": 2 * moved / read_bytes_per_s})


def predicted_ratio(
    config: ModelConfig, dtype: torch.dtype, device: str, block_size: int | None,
    kernel: str = "auto",
) -> float:  # fmt: skip
    """Bytes that attention moves over those of a dense store."""
    if block_size is None:
        return 1.0
    if torch.device(device).type == "cuda" and kernel != "gather":
        return table_ratio(config, dtype_name(dtype), block_size)
    return gather_ratio()


def _dense_work(
    config: ModelConfig, queries: torch.Tensor, context_len: int, num_layers: int
) -> Callable[[], None]:
    batch_size, device = queries.shape[0], queries.device
    shape = cache_shape(config, batch_size, context_len, num_layers)
    check_host_memory(shape.num_bytes(queries.dtype), "the cache of a case", device)
    size = (batch_size, config.num_kv_heads, context_len, config.head_dim)
    stores = [
        [torch.full(size, CONSTANT, dtype=queries.dtype, device=device) for _ in range(2)]
        for _ in range(num_layers)
    ]
    if device.type != "cuda":
        return lambda: [attend(queries, keys, values, None) for keys, values in stores]
    from inferlab.kernels.split_kv import decode_attention

    lengths = torch.full((batch_size,), context_len, dtype=torch.int32, device=device)
    views = [StoreView(keys, values, lengths) for keys, values in stores]
    return lambda: [decode_attention(queries[:, 0], view) for view in views]


def _timed(
    make: Callable[[], Callable[[], Any]],
    device: str,
    metric: str = "attention_s",
    repeats: int = 3,
) -> Run:
    """Seconds of one call of what `make` returns, the fastest of a few calls.

    Made anew in each round: the stores of all cases together would not fit.
    """

    @torch.inference_mode()
    def run() -> dict[str, float]:
        work, seconds = make(), []
        for _ in range(REPEATS):
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        return {metric: min(seconds)}

    return run


def step_case(
    decoder: Decoder, batch_size: int, context_len: int, steps: int, block_size: int | None,
    fitted: Fitted,
) -> Case:  # fmt: skip
    """TPOT of `steps` whole decode steps on a filled cache, dense (None) or paged."""
    config, device = decoder.config, decoder.device.type

    def full_cache() -> KVCache:
        if block_size is not None:
            return shuffled_cache(
                config, decoder.dtype, device, batch_size, context_len, steps, block_size
            )
        shape = cache_shape(config, batch_size, context_len + steps)
        dense = make_cache(DENSE, shape, decoder.dtype, decoder.device)
        constant = torch.full((1,), CONSTANT, dtype=decoder.dtype, device=decoder.device)
        size = (batch_size, config.num_kv_heads, context_len, config.head_dim)
        for layer in range(config.num_layers):
            dense.update(layer, constant.expand(size), constant.expand(size))
        dense.advance(context_len)
        return dense

    @torch.inference_mode()
    def run() -> dict[str, float]:
        store = full_cache()
        tokens = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        times = []
        synchronize(device)
        for step in range(steps + 1):
            times.append(time.perf_counter())
            if step < steps:
                place = torch.full((1, 1), context_len + step, device=device)
                tokens = decoder(tokens, store, place).argmax(-1, keepdim=True)
                synchronize(device)
        return {"tpot_s": statistics.median(np.diff(times)), "fastest_step_s": min(np.diff(times))}

    kind = "paged" if block_size else DENSE
    params = {
        "phase": "decode", "cache": kind, "block_size": block_size or 0,
        "model": config.name, "dtype": dtype_name(decoder.dtype), "batch_size": batch_size,
        "context_len": context_len,
    }  # fmt: skip
    predicted = predict_step_s(config, decoder.dtype, device, batch_size, context_len, block_size,
                               fitted)  # fmt: skip
    return Case(run, params, {"tpot_s": predicted})


def predict_step_s(
    config: ModelConfig, dtype: torch.dtype, device: str, batch_size: int, context_len: int,
    block_size: int | None, fitted: Fitted,
) -> float:  # fmt: skip
    """Floor and overhead of the dense step, and what a gather moves beyond it."""
    cost = decode_cost(config, dtype_name(dtype), batch_size, context_len)
    more = predicted_ratio(config, dtype, device, block_size) - 1
    moved_s = more * cost.kv_read_bytes / fitted.decode.read_bytes_per_s
    return roofline.predict_s(cost, fitted.decode, batch_size) + moved_s


def cache_shape(
    config: ModelConfig, batch_size: int, capacity: int, num_layers: int | None = None
) -> CacheShape:
    """Shape of a cache of `config`, or of some of its layers."""
    layers = num_layers or config.num_layers
    return CacheShape(layers, batch_size, config.num_kv_heads, capacity, config.head_dim)
