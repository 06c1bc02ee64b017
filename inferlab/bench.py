"""From a backend and a workload to a timed case: the one place that ties them to the recorder.

Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferlab import roofline
from inferlab.backends.base import Backend, load_backend
from inferlab.calibration import step_overhead_s, token_ceilings
from inferlab.metrics import tpot_s, ttft_s
from inferlab.models.config import ModelConfig
from inferlab.models.cost import decode_cost
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

    def run() -> dict[str, float]:
        metrics = trace_metrics(backend.run(workload).trace)
        if ceilings and "tpot_s" in metrics:
            metrics["mbu_ratio"] = mbu_ratio(
                backend.config, backend.dtype, shape, metrics["tpot_s"], ceilings
            )
        return metrics

    return run


def predict(
    config: ModelConfig, dtype: str, shape: Shape, ceilings: roofline.Ceilings
) -> dict[str, float]:
    """Expected TTFT, TPOT and output throughput of `shape`; nothing queued."""
    ttft = roofline.predict_ttft_s(config, dtype, shape.batch_size, shape.prompt_len, ceilings)
    tpot = roofline.predict_tpot_s(
        config, dtype, shape.batch_size, shape.mean_context_len, ceilings
    )
    wall_s = ttft + (shape.output_len - 1) * tpot
    return {
        "ttft_s": ttft,
        "tpot_s": tpot,
        "output_tok_per_s": shape.batch_size * shape.output_len / wall_s,
        "mbu_ratio": mbu_ratio(config, dtype, shape, tpot, ceilings),
    }


def mbu_ratio(
    config: ModelConfig, dtype: str, shape: Shape, seconds: float, ceilings: roofline.Ceilings
) -> float:
    """Model bandwidth utilization of decode steps that took `seconds` each."""
    cost = decode_cost(config, dtype, shape.batch_size, shape.mean_context_len)
    return roofline.mbu_ratio(cost, seconds, ceilings)


def generation_case(
    backend: Backend,
    shape: Shape,
    *,
    ceilings: roofline.Ceilings | None = None,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Case:
    """A case for the recorder: uniform prompts of `shape`, with its prediction if any."""
    workload = uniform_batch(
        backend.config.vocab_size, shape.batch_size, shape.prompt_len, shape.output_len, seed
    )
    described = {
        "backend": backend.name,
        "model": backend.config.name,
        "dtype": backend.dtype,
        "batch_size": shape.batch_size,
        "prompt_len": shape.prompt_len,
        "output_len": shape.output_len,
        **(params or {}),
    }
    predicted = predict(backend.config, backend.dtype, shape, ceilings) if ceilings else {}
    run = generation_run(backend, workload, shape, ceilings)
    return Case(run, described, predicted)


def generation_cases(
    backend_name: str, model: str, dtype: str, device: str, shapes: Sequence[Shape], seed: int = 0
) -> tuple[Backend, dict[str, Case], dict[str, roofline.Ceilings]]:
    """A loaded backend and its cases, each predicted from probes of this machine.

    The overhead in the prediction is measured on a narrow model of the same depth: none of the
    cases that it will be judged on.
    """
    backend = load_backend(backend_name, model, dtype, device)
    overhead_s = step_overhead_s(backend_name, backend.config, dtype, device)
    cases, limits = {}, {}
    for shape in shapes:
        ceilings = token_ceilings(
            backend.config, dtype, device, shape.batch_size * shape.prompt_len, overhead_s
        )
        key = f"{backend_name}-{model}-{dtype}-{shape.key}"
        cases[key] = generation_case(backend, shape, ceilings=ceilings, seed=seed)
        limits[key] = ceilings
    return backend, cases, limits
