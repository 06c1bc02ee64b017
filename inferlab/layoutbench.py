"""How long is a decode step in each layout of keys and values, and how many sequences fit?

Speed does not depend on values, so caches are filled with a constant; the step at one context is
repeated, on a GPU from a CUDA graph. All layouts share one model's other weights.
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from inferlab import bench, layoutcost
from inferlab.calibration import quick_ceilings
from inferlab.decoding.graphs import captured
from inferlab.errors import UserError
from inferlab.fitting import fit_shapes
from inferlab.hardware.probes import synchronize
from inferlab.kvcache import KVCache
from inferlab.kvcache.latent import LatentCache
from inferlab.layoutcost import Layout, get_layout
from inferlab.metrics import itl_s
from inferlab.models.decoder import Decoder
from inferlab.models.decoupled import decoupled_decoder
from inferlab.models.latent import Moments, latent_decoder
from inferlab.models.layouts import with_layout
from inferlab.models.load import load_decoder, resolve_config
from inferlab.models.placement import check_host_memory, dtype_name
from inferlab.recorder import Case
from inferlab.roofline import Ceilings, fit_overhead
from inferlab.trace import Request, Trace

FIT_ROUNDS, FIT_STEPS = 3, 6


@dataclass(frozen=True, slots=True)
class Opened:
    """A decoder in one layout."""

    layout: Layout
    decoder: Decoder
    weights: str  # real | random

    @property
    def dtype(self) -> str:
        """Number format of weights and cache."""
        return dtype_name(self.decoder.dtype)


def open_layouts(
    model: str,
    dtype: str,
    device: str,
    weights: str,
    names: Iterable[str],
    moments: Moments | None = None,
) -> dict[str, Opened]:
    """Decoders of one model in each layout of `names`; they share all weights but attention's.

    `moments` are those of latent layouts (None: the best for inputs without a preferred direction,
    which is enough for timing). UserError for a layout that the model cannot have, before loading.
    """
    config = resolve_config(model)
    layouts = {name: get_layout(config, name) for name in names}
    base = load_decoder(model, dtype, device, weights, pack=False)
    opened = {
        name: Opened(layout, build(base, layout, moments), weights)
        for name, layout in layouts.items()
    }
    for found in opened.values():  # shared weights are packed once
        found.decoder.pack()
    return opened


def build(base: Decoder, layout: Layout, moments: Moments | None = None) -> Decoder:
    """`base`, with plain weights, in `layout`."""
    if layout.kind == "heads":
        return with_layout(base, layout.name)
    if layout.kind == "decoupled":
        return decoupled_decoder(base, layout.rank)
    return latent_decoder(base, layout.rank, moments, absorb=layout.kind == "absorbed")


def new_cache(opened: Opened, batch_size: int, capacity: int) -> KVCache:
    """An empty cache of that layout; BatchTooLarge when a CPU's memory cannot hold it."""
    needed = layoutcost.cache_bytes(opened.layout, opened.dtype, batch_size, capacity)
    what = f"{batch_size} sequences of {capacity} tokens in {opened.layout.name}"
    check_host_memory(needed, what, opened.decoder.device)
    kind = "static" if opened.layout.kind == "heads" else "latent"
    return opened.decoder.new_cache(kind, batch_size, capacity)


@torch.inference_mode()
def filled_cache(opened: Opened, batch_size: int, context_len: int, room: int = 1) -> KVCache:
    """A cache that holds `context_len` positions of each sequence and has room for more."""
    decoder, config = opened.decoder, opened.decoder.config
    decoder.reserve(context_len + room)  # a UserError for more than the model was trained for
    cache = new_cache(opened, batch_size, context_len + room)
    constant = torch.full((1,), 0.01, dtype=decoder.dtype, device=decoder.device)
    if isinstance(cache, LatentCache):
        latents = constant.expand(batch_size, context_len, cache.shape.head_dim)
        angles = constant.expand(1, context_len, 1, cache.angle_dim)
        for layer in range(config.num_layers):
            cache.append(layer, latents, (angles, angles) if cache.angle_dim else None)
    else:
        shape = (batch_size, config.num_kv_heads, context_len, config.head_dim)
        for layer in range(config.num_layers):
            cache.update(layer, constant.expand(shape), constant.expand(shape))
    cache.length = context_len
    return cache


def step_trace(opened: Opened, batch_size: int, context_len: int, steps: int) -> tuple[Trace, int]:
    """(`steps` + 1 greedy steps of B sequences at `context_len` positions, bytes of their cache).

    The new token counts as one of the positions. Each step writes the same place again, so that all
    are at the same context; the first is the first token of the trace.
    """
    device = opened.decoder.device
    cache = filled_cache(opened, batch_size, context_len - 1)
    work = step_work(opened, cache)
    events = []
    with torch.inference_mode():
        replay = captured(work, device)
        synchronize(device)
        start = time.perf_counter()
        for _ in range(steps + 1):
            replay()
            synchronize(device)
            events.append((time.perf_counter() - start, 1))
    requests = tuple(
        Request(f"r{i:04d}", 0.0, 0.0, context_len - 1, tuple(events)) for i in range(batch_size)
    )
    return Trace(requests), cache.num_bytes()


def step_work(opened: Opened, cache: KVCache) -> Callable[[], None]:
    """One greedy step behind what `cache` holds now, again and again at the same place."""
    decoder, length = opened.decoder, cache.length
    rows = cache.shape.batch_size
    tokens = torch.zeros(rows, 1, dtype=torch.int64, device=decoder.device)
    positions = torch.full((1, 1), length, dtype=torch.int64, device=decoder.device)

    def work() -> None:
        cache.length = length
        tokens.copy_(decoder(tokens, cache, positions).argmax(-1, keepdim=True))

    return work


def fit_ceilings(opened: Opened, device: str) -> Ceilings:
    """This machine's ceilings, and the overhead of a step of `opened`, on shapes of no case."""
    config, layout = opened.decoder.config, opened.layout
    limits = quick_ceilings(config, opened.dtype, device)
    costs, rows, measured = [], [], []
    for shape in fit_shapes(config, device):
        where = (shape.batch_size, shape.prompt_len)
        found = [step_metrics(opened, *where, FIT_STEPS)["tpot_s"] for _ in range(FIT_ROUNDS)]
        costs.append(layoutcost.step_cost(layout, opened.dtype, *where))
        rows.append(shape.batch_size)
        measured.append(statistics.median(found))
    return fit_overhead(costs, rows, measured, limits)


def step_metrics(opened: Opened, batch_size: int, context_len: int, steps: int) -> dict[str, float]:
    """TPOT, the fastest step, throughput and bytes of the cache at one batch size and context."""
    device = opened.decoder.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trace, kv_bytes = step_trace(opened, batch_size, context_len, steps)
    tpot_s = bench.trace_metrics(trace)["tpot_s"]
    gaps = [gap for request in trace.requests for gap in itl_s(request)]
    found = {
        "tpot_s": tpot_s,
        # Other load only ever adds time, so bands are judged on the fastest step.
        "fastest_step_s": min(gaps),
        "output_tok_per_s": batch_size / tpot_s,
        "kv_bytes": kv_bytes,
    }
    if device.type == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def step_case(
    opened: Opened,
    batch_size: int,
    context_len: int,
    steps: int,
    ceilings: Ceilings | None = None,
    phase: str = "step",
) -> Case:
    """Steps of one layout at one batch size and context, predicted with `ceilings`."""
    predicted: dict[str, float] = {}
    if ceilings:
        found = layoutcost.predict_step(
            opened.layout, opened.dtype, batch_size, context_len, ceilings
        )
        predicted = {"tpot_s": found["step_s"], **found}
        predicted.pop("step_s")
    params = {
        **described(opened), "phase": phase, "batch_size": batch_size, "context_len": context_len,
    }  # fmt: skip
    return Case(lambda: step_metrics(opened, batch_size, context_len, steps), params, predicted)


def described(opened: Opened) -> dict[str, Any]:
    """Parameters that every case of a layout has; `family` is how figures colour it."""
    layout = opened.layout
    family = layout.kind if layout.rank else layout.name
    return {
        "layout": layout.name, "family": family, "rank": layout.rank, "model": base_name(opened),
        "dtype": opened.dtype, "weights": opened.weights,
    }  # fmt: skip


def base_name(opened: Opened) -> str:
    """Name of the model that the layout was made from."""
    layout, name = opened.layout, opened.decoder.config.name
    return name.removesuffix(f"-{layout.name}").removesuffix(f"-latent-{layout.rank}")


def remake_case(opened: Opened, batch_size: int, context_len: int, ceilings: Ceilings) -> Case:
    """Making keys and values of all cached tokens, in every layer, and nothing else."""
    layout, decoder = opened.layout, opened.decoder
    if layout.kind != "latent":
        raise UserError(f"{layout.name} does not make keys and values again: choose latent-R")
    seconds = layoutcost.remake_s(layout, batch_size, context_len, ceilings)

    @torch.inference_mode()
    def run() -> Mapping[str, float]:
        cache = filled_cache(opened, batch_size, context_len)
        cache.length = context_len - 1
        shape = (batch_size, 1, layout.rank)
        newest = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        angles = torch.ones(1, 1, 1, cache.angle_dim, dtype=decoder.dtype, device=decoder.device)

        def work() -> None:
            for layer in decoder.layers:
                kept = cache.append(layer.attention.layer, newest, (angles, angles))
                layer.attention.remade(*kept)

        replay = captured(work, decoder.device)
        synchronize(decoder.device)
        start = time.perf_counter()
        replay()
        synchronize(decoder.device)
        return {"remake_s": time.perf_counter() - start}

    params = {**described(opened), "phase": "remake"}
    return Case(
        run, {**params, "batch_size": batch_size, "context_len": context_len}, {"remake_s": seconds}
    )
