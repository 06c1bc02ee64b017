"""What does a backend's step cost on top of its floor? Fitted on shapes that nothing else uses.

Chapter: chapters/02_roofline.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from inferlab.backends.base import Backend, load_backend
from inferlab.bench import Shape, quantized_weights, trace_metrics
from inferlab.calibration import quick_ceilings
from inferlab.models.config import ModelConfig
from inferlab.models.cost import decode_cost, prefill_cost
from inferlab.roofline import Ceilings, fit_overhead
from inferlab.workload import uniform_batch

ROUNDS = 3
OUTPUT_LEN = 9
_FITS: dict[tuple, Fitted] = {}  # one fit a process: it takes seconds
_MEASURED: dict[tuple, dict[Shape, dict[str, float]]] = {}


@dataclass(frozen=True, slots=True)
class Fitted:
    """Ceilings of this machine with the overheads of one backend, prefill and decode apart."""

    prefill: Ceilings
    decode: Ceilings


def fit_shapes(config: ModelConfig, device: str) -> list[Shape]:
    """One short, one wide, one long: odd sizes, so that they are no case of a lab."""
    room = config.max_context_len - OUTPUT_LEN
    short, long = min(41, max(1, room // 4)), min(331, room)
    wide = 7 if device == "cpu" else 47
    return [Shape(1, short, OUTPUT_LEN), Shape(wide, short, OUTPUT_LEN), Shape(1, long, OUTPUT_LEN)]


def fit_backend(backend: Backend, device: str) -> Fitted:
    """Ceilings and overheads of `backend`; measured once in a process for each model and dtype.

    The medians of three rounds after a warm-up; least squares of the relative error.
    """
    key = _key(backend, device)
    if key not in _FITS:
        _FITS[key] = _fit(backend, device)
    return _FITS[key]


def fit_model(backend_name: str, config: ModelConfig, dtype: str, device: str) -> Fitted:
    """The same before a model is loaded: with random weights, which take as long, and are freed."""
    key = (backend_name, config, dtype, device)
    if key not in _FITS:
        fit_backend(load_backend(backend_name, config, dtype, device, weights="random"), device)
    return _FITS[key]


def measured_shapes(backend: Backend, device: str) -> dict[Shape, dict[str, float]]:
    """Median TTFT and TPOT of `backend` at the shapes that fits use; measured once in a process."""
    key = _key(backend, device)
    if key not in _MEASURED:
        shapes = fit_shapes(backend.config, device)
        _MEASURED[key] = {shape: _median_metrics(backend, shape) for shape in shapes}
    return _MEASURED[key]


def _key(backend: Backend, device: str) -> tuple:
    """What the speed of a backend depends on; quantized weights also on their kernel, plain ones
    on whether they could have been packed."""
    step = getattr(backend, "step", "eager")
    plain = (backend.name, backend.config, backend.dtype, device)
    plain += () if step == "eager" else (step,)
    plain += ("plain",) if step == "eager" and getattr(backend, "is_plain", False) else ()
    format, keep = quantized_weights(backend)
    return (*plain, format, keep, backend.kernel) if format else plain


def _fit(backend: Backend, device: str) -> Fitted:
    config, dtype = backend.config, backend.dtype
    how = quantized_weights(backend)
    limits = quick_ceilings(config, dtype, device)
    shapes, measured = zip(*measured_shapes(backend, device).items(), strict=True)
    prefill = fit_overhead(
        [prefill_cost(config, dtype, s.batch_size, s.prompt_len, *how) for s in shapes],
        [s.batch_size * s.prompt_len for s in shapes],
        [metrics["ttft_s"] for metrics in measured],
        limits,
    )
    decode = fit_overhead(
        [decode_cost(config, dtype, s.batch_size, s.mean_context_len, *how) for s in shapes],
        [s.batch_size for s in shapes],
        [metrics["tpot_s"] for metrics in measured],
        limits,
    )
    return Fitted(prefill, decode)


def _median_metrics(backend: Backend, shape: Shape) -> dict[str, float]:
    workload = uniform_batch(
        backend.config.vocab_size, shape.batch_size, shape.prompt_len, shape.output_len, seed=1
    )
    backend.run(workload)
    rounds = [trace_metrics(backend.run(workload).trace) for _ in range(ROUNDS)]
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
