"""From a backend and a workload to a timed case: the one place that ties them to the recorder.

Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inferlab import roofline
from inferlab.backends.base import Backend, prefill_bytes
from inferlab.decoding.graphs import captured
from inferlab.hardware.probes import synchronize
from inferlab.metrics import tpot_s, ttft_s
from inferlab.models.config import ModelConfig
from inferlab.models.cost import decode_cost, dtype_bytes, prefill_cost
from inferlab.models.decoder import Decoder
from inferlab.models.placement import check_host_memory
from inferlab.models.projections import projections
from inferlab.quant.formats import WeightFormat
from inferlab.recorder import Case
from inferlab.timing import Run
from inferlab.trace import Trace
from inferlab.workload import Workload, uniform_batch


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of one case: rows, tokens in, tokens out."""

    batch_size: int
    prompt_len: int
    output_len: int

    @property
    def mean_context_len(self) -> int:
        """Context of the middle decode step: TPOT averages over all of them."""
        return self.prompt_len + max(1, self.output_len // 2)

    @property
    def key(self) -> str:
        """Part of a case's name."""
        return f"b{self.batch_size}-p{self.prompt_len}-o{self.output_len}"


def trace_metrics(trace: Trace) -> dict[str, float]:
    """TTFT and TPOT (median over the requests) and output throughput of one batch run."""
    first = [value for r in trace.requests if (value := ttft_s(r)) is not None]
    gaps = [value for r in trace.requests if (value := tpot_s(r)) is not None]
    tokens = sum(count for r in trace.requests for _, count in r.events)
    start = min(r.scheduled for r in trace.requests)
    end = max(r.events[-1][0] for r in trace.requests)
    metrics = {"ttft_s": statistics.median(first)}
    if gaps:
        metrics = {"tpot_s": statistics.median(gaps), **metrics}
    return {**metrics, "output_tok_per_s": tokens / (end - start)}


def generation_run(
    backend: Backend, workload: Workload, shape: Shape, ceilings: roofline.Ceilings | None
) -> Run:
    """A callable that generates `workload` once and returns its metrics, MBU with `ceilings`."""
    quantization = quantized_weights(backend)

    def run() -> dict[str, float]:
        metrics = trace_metrics(backend.run(workload).trace)
        if ceilings and "tpot_s" in metrics:
            metrics["mbu_ratio"] = mbu_ratio(
                backend.config, backend.dtype, shape, metrics["tpot_s"], ceilings, *quantization
            )
        return metrics

    return run


def predict(
    config: ModelConfig,
    dtype: str,
    shape: Shape,
    ceilings: roofline.Ceilings,
    prefill: roofline.Ceilings | None = None,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> dict[str, float]:
    """Expected TTFT, TPOT, output throughput and MBU of `shape`, nothing queued; and its floors.

    `prefill` holds the ceilings and overheads of the prefill where they differ from decode's.
    With `weight_format` the weights are read at its width and multiplied at the same rates: what a
    perfect kernel would do. `inferlab.kernelfit` predicts what a real one does.
    """
    first = prefill or ceilings
    how = (weight_format, keep)
    ttft = roofline.predict_ttft_s(config, dtype, shape.batch_size, shape.prompt_len, first, *how)
    tpot = roofline.predict_tpot_s(
        config, dtype, shape.batch_size, shape.mean_context_len, ceilings, *how
    )
    return expected_metrics(config, dtype, shape, ttft, tpot, ceilings, *how)


def expected_metrics(
    config: ModelConfig,
    dtype: str,
    shape: Shape,
    ttft_s: float,
    tpot_s: float,
    ceilings: roofline.Ceilings,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> dict[str, float]:
    """All metrics of `shape` that follow from an expected TTFT and TPOT; and its floors."""
    how = (weight_format, keep)
    wall_s = ttft_s + (shape.output_len - 1) * tpot_s
    found = {"ttft_s": ttft_s, "output_tok_per_s": shape.batch_size * shape.output_len / wall_s}
    if shape.output_len > 1:  # a single token has no TPOT
        found["tpot_s"] = tpot_s
        found["mbu_ratio"] = mbu_ratio(config, dtype, shape, tpot_s, ceilings, *how)
    return {**found, **floors(config, dtype, shape, ceilings, *how)}


def floors(
    config: ModelConfig,
    dtype: str,
    shape: Shape,
    ceilings: roofline.Ceilings,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> dict[str, float]:
    """Seconds that reading and computing need at least, for the prefill and for a decode step."""
    how = (weight_format, keep)
    prefill = prefill_cost(config, dtype, shape.batch_size, shape.prompt_len, *how)
    decode = decode_cost(config, dtype, shape.batch_size, shape.mean_context_len, *how)
    return {
        "prefill_memory_s": roofline.memory_s(prefill, ceilings),
        "prefill_compute_s": roofline.compute_s(prefill, ceilings),
        "decode_memory_s": roofline.memory_s(decode, ceilings),
        "decode_compute_s": roofline.compute_s(decode, ceilings),
    }


def mbu_ratio(
    config: ModelConfig,
    dtype: str,
    shape: Shape,
    seconds: float,
    ceilings: roofline.Ceilings,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> float:
    """Model bandwidth utilization of decode steps that took `seconds` each.

    Quantized weights count with the bytes that their codes and scales take: fewer must move.
    """
    cost = decode_cost(config, dtype, shape.batch_size, shape.mean_context_len, weight_format, keep)
    return roofline.mbu_ratio(cost, seconds, ceilings)


def quantized_weights(backend: Backend) -> tuple[WeightFormat | None, tuple[str, ...]]:
    """Weight format of `backend` and the projections that it keeps unquantized; (None, ())."""
    format = getattr(backend, "weight_format", None)
    return format, (backend.kept if format else ())


def shaped_batch(backend: Backend, shape: Shape, seed: int = 0) -> Workload:
    """Uniform prompts of `shape`; BatchTooLarge before they are drawn if a CPU cannot serve them.

    Only what every cache needs is counted here; the backend counts the rest.
    """
    device = getattr(backend, "device", None)
    if device is not None:
        least = prefill_bytes(
            backend.config, dtype_bytes(backend.dtype), shape.batch_size, shape.prompt_len
        )
        what = f"a batch of {shape.batch_size} prompts of {shape.prompt_len} tokens"
        check_host_memory(least, what, torch.device(device))
    return uniform_batch(
        backend.config.vocab_size, shape.batch_size, shape.prompt_len, shape.output_len, seed
    )


def generation_case(
    backend: Backend,
    shape: Shape,
    *,
    ceilings: roofline.Ceilings | None = None,
    predicted: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Case:
    """A case for the recorder: uniform prompts of `shape`, and what is expected of it.

    With `ceilings` each sample also has an MBU, and the expectation is the roofline's unless
    `predicted` states another one.
    """

    @functools.cache  # drawn when the case first runs: prompts of a batch that fits nowhere are GBs
    def workload() -> Workload:
        return shaped_batch(backend, shape, seed)

    def run() -> dict[str, float]:
        return generation_run(backend, workload(), shape, ceilings)()

    format, keep = quantized_weights(backend)
    described = {
        "backend": backend.name,
        "model": backend.config.name,
        "dtype": backend.dtype,
        "batch_size": shape.batch_size,
        "prompt_len": shape.prompt_len,
        "output_len": shape.output_len,
        **({"format": format.name} if format else {}),
        **(params or {}),
    }
    if predicted is None:
        predicted = {}
        if ceilings:
            predicted = predict(backend.config, backend.dtype, shape, ceilings, None, format, keep)
    return Case(run, described, predicted)


def projection_run(decoder: Decoder, num_tokens: int, part: str = "all") -> Run:
    """A callable that does the matrix products of one step of `num_tokens` rows and nothing else.

    Every product with weights runs once, in the order of the layers, on random rows: the part of a
    step that the roofline speaks of, without attention, norms and launches of small kernels.
    `part` is all, layers (without the head) or head. On a GPU one CUDA graph starts them all.
    """
    wanted = {"all": (True, True), "layers": (True, False), "head": (False, True)}[part]
    layers = [module for name, module in projections(decoder) if wanted[name == "head"]]
    rows = {
        size: torch.randn(num_tokens, size, device=decoder.device).to(decoder.dtype)
        for size in {layer.in_features for layer in layers}
    }

    def multiply() -> None:
        for layer in layers:
            layer(rows[layer.in_features])

    @functools.cache
    def ready() -> Callable[[], None]:
        return captured(multiply, decoder.device)

    def run() -> dict[str, float]:
        with torch.inference_mode():
            work = ready()
            synchronize(decoder.device)
            start = time.perf_counter()
            work()
            synchronize(decoder.device)
        return {"step_s": time.perf_counter() - start}

    return run
