"""What does each way of keeping keys and values cost, by context and batch: cases and predictions.

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch

from inferlab import bench, roofline
from inferlab.backends import hf as hf_backend
from inferlab.backends.base import Backend
from inferlab.backends.torch import TorchBackend
from inferlab.cachecost import HF, step_cost
from inferlab.fitting import Fitted, fit_backend, fit_model
from inferlab.hardware.facts import describe_machine
from inferlab.metrics import itl_s
from inferlab.models.config import ModelConfig
from inferlab.models.cost import (
    kv_bytes_per_token,
    kv_cache_bytes,
    weight_bytes,
)
from inferlab.models.decoder import Decoder
from inferlab.models.load import load_decoder
from inferlab.recorder import Case
from inferlab.timing import Run
from inferlab.workload import uniform_batch


def cache_kinds(device: str) -> tuple[str, ...]:
    """Kinds of cache that mean something on `device`: offloading needs a second memory."""
    kinds = ("none", "dynamic", "static")
    return kinds if device == "cpu" else (*kinds, "offloaded")


def open_variants(
    model: str, dtype: str, device: str, weights: str, kinds: Iterable[str]
) -> dict[str, Backend]:
    """One backend a kind of cache, all on the same weights, and `hf` where its copy fits too."""
    decoder = load_decoder(model, dtype, device, weights)
    variants: dict[str, Backend] = {
        kind: TorchBackend(decoder, kind, weights=weights) for kind in kinds
    }
    machine = describe_machine(device)
    memory = (machine.accelerator or machine.cpu).memory_bytes
    # Two copies of the weights, and half as much again for caches and activations.
    if not memory or 2.5 * weight_bytes(decoder.config, dtype) < memory:
        variants[HF] = hf_backend.load(model, dtype, device, weights)
    return variants


def predict_tpot_s(
    config: ModelConfig,
    dtype: str,
    device: str,
    kind: str,
    batch_size: int,
    context_len: int,
    fitted: Fitted | None = None,
) -> float:
    """Expected seconds of that step on this machine: floor, bus if offloaded, and overhead.

    The overhead was fitted on other shapes than any case: of a prefill where nothing is kept, of
    a decode step with a static cache for the kinds of this package, of its own steps for hf.
    """
    if fitted is None:
        fitted = fit_model(HF if kind == HF else "torch", config, dtype, device)
    limits = fitted.prefill if kind == "none" else fitted.decode
    tokens = batch_size * (context_len if kind == "none" else 1)
    cost = step_cost(config, dtype, kind, batch_size, context_len)
    if kind == "offloaded":
        moved_s = kv_cache_bytes(config, dtype, batch_size, context_len) / bus_bandwidth(device)
        floor_s = roofline.floor_s(cost, limits)
        return roofline.predict_s(cost, limits, tokens) + max(0.0, moved_s - floor_s)
    return roofline.predict_s(cost, limits, tokens)


@functools.cache
def bus_bandwidth(device: str) -> float:
    """Bytes/s from pinned host memory to `device`: the median of five copies of 256 MiB."""
    host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(host, device=device)
    rates = []
    for _ in range(6):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        target.copy_(host, non_blocking=True)
        torch.cuda.synchronize(device)
        rates.append(host.numel() / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def predict(
    config: ModelConfig, dtype: str, device: str, kind: str, shape: bench.Shape, fitted: Fitted
) -> dict[str, float]:
    """Expected TTFT, TPOT, throughput and cache bytes of a case, and the bytes of its weights."""
    ttft = roofline.predict_ttft_s(
        config, dtype, shape.batch_size, shape.prompt_len, fitted.prefill
    )
    found = {"ttft_s": ttft}
    if shape.output_len > 1:
        tpot = predict_tpot_s(
            config, dtype, device, kind, shape.batch_size, shape.mean_context_len, fitted
        )
        wall_s = ttft + (shape.output_len - 1) * tpot
        found = {
            "tpot_s": tpot,
            **found,
            "output_tok_per_s": shape.batch_size * shape.output_len / wall_s,
        }
    held = 0 if kind == "none" else kv_bytes_per_token(config, dtype) * shape.batch_size
    return {
        **found,
        "kv_bytes": held * positions_held(shape),
        "weight_bytes": weight_bytes(config, dtype),
    }


def positions_held(shape: bench.Shape) -> int:
    """Positions of a sequence in the cache at the end: the last token is never fed back."""
    return shape.prompt_len + shape.output_len - 1


def cache_case(kind: str, backend: Backend, shape: bench.Shape, device: str, seed: int = 0) -> Case:
    """A case of one kind of cache, with its prediction, for the recorder."""
    config = backend.config
    workload = uniform_batch(
        config.vocab_size, shape.batch_size, shape.prompt_len, shape.output_len, seed
    )
    params = {
        "cache": kind,
        "backend": backend.name,
        "model": config.name,
        "dtype": backend.dtype,
        "batch_size": shape.batch_size,
        "prompt_len": shape.prompt_len,
        "output_len": shape.output_len,
        "context_len": positions_held(shape),
    }
    run = _cache_run(backend, workload, device)
    fitted = fit_backend(_baseline_of(backend), device)
    return Case(run, params, predict(config, backend.dtype, device, kind, shape, fitted))


def _baseline_of(backend: Backend) -> Backend:
    """Whose overhead predicts `backend`: its decoder's with a static cache, or hf's own."""
    if isinstance(backend, TorchBackend):
        return TorchBackend(backend.decoder, "static", weights=backend.weights)
    return backend


def _cache_run(backend: Backend, workload: Any, device: str) -> Run:
    """TTFT, TPOT and throughput of one batch; its fastest step; what it held in memory."""

    def run() -> dict[str, float]:
        on_gpu = device != "cpu"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        trace = backend.run(workload).trace
        metrics = bench.trace_metrics(trace)
        gaps = [gap for request in trace.requests for gap in itl_s(request)]
        if gaps:
            # Other load only ever adds time, so the fastest step is what bands are judged on.
            metrics["fastest_step_s"] = min(gaps)
        if "cache_bytes" in trace.meta:
            metrics["kv_bytes"] = trace.meta["cache_bytes"]
        if on_gpu:
            metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        if isinstance(backend, TorchBackend):
            backend.release()
        return metrics

    return run


def memory_case(decoder: Decoder, batch_size: int, context_len: int, dtype: str) -> Case:
    """Bytes of a static cache that is really allocated: no step is run."""
    config = decoder.config

    def run() -> dict[str, float]:
        return {"kv_bytes": decoder.new_cache("static", batch_size, context_len).num_bytes()}

    params = {
        "cache": "static", "model": config.name, "dtype": dtype,
        "batch_size": batch_size, "context_len": context_len, "phase": "memory",
    }  # fmt: skip
    predicted = {
        "kv_bytes": kv_cache_bytes(config, dtype, batch_size, context_len),
        "weight_bytes": weight_bytes(config, dtype),
    }
    return Case(run, params, predicted)
