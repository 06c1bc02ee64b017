"""What is a backend: anything that serves a workload and says when each token came?

A backend is a module with `load(model, dtype, device, **options) -> Backend`; BACKENDS names the
modules, imported when asked for.
Chapter: chapters/01_metrics.md    Lab: labs/01_metrics.ipynb
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig, get_config
from inferlab.models.cost import dtype_bytes
from inferlab.models.placement import check_host_memory
from inferlab.trace import Request, Trace
from inferlab.workload import Workload

BACKENDS = {
    "hf": "inferlab.backends.hf",
    "torch": "inferlab.backends.torch",
    "onnx": "inferlab.backends.onnx",
    "engine": "inferlab.backends.engine",
    "stall": "inferlab.backends.stall",
    "http": "inferlab.backends.http",
    "batched": "inferlab.backends.batched",
}


@dataclass(frozen=True, slots=True)
class BackendRun:
    """What came of a workload: when (the trace) and what (token ids, one list a request)."""

    trace: Trace
    token_ids: list[list[int]]


class Backend(Protocol):
    """Serves workloads with one model, held in memory between runs."""

    name: str
    config: ModelConfig
    dtype: str

    def run(self, workload: Workload) -> BackendRun:
        """Serve all requests; times in the trace are seconds from the start of the run."""
        ...


def load_backend(
    name: str,
    model: str | ModelConfig = "smollm2-135m",
    dtype: str = "bfloat16",
    device: str = "cpu",
    **options: Any,
) -> Backend:
    """The backend called `name` with `model` loaded.

    `model` is a preset's name or a ModelConfig. Options of hf, torch and engine: `weights` (real,
    random); of torch alone: `cache` (none, dynamic, static, offloaded), `pack`, `quant` (a weight
    format, with `kernel` and `keep`), `step` (how decode steps are taken); of engine alone: those
    of `serving.engine.Engine`, and `cache_tokens`; of batched alone: `policy` (none, static,
    dynamic), `batch_size`, `max_wait_s`, `prefill` (padded, packed). Raises UserError that lists
    what exists when a name or an option is unknown.
    """
    if name not in BACKENDS:
        raise UserError(f"unknown backend {str(name)[:40]!r}; known: {', '.join(BACKENDS)}")
    if not isinstance(model, ModelConfig):
        get_config(model)  # before seconds are spent on imports
    load = import_module(BACKENDS[name]).load
    known = list(inspect.signature(load).parameters)[3:]
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise UserError(f"backend {name} has no option {option!r}; known: {listed}")
    return load(model, dtype, device, **options)


def check_static_batch(workload: Workload) -> None:
    """Refuse what one static batch cannot serve: nothing to do, or requests due later than 0 s."""
    if not workload.requests:
        raise UserError("the workload has no requests")
    late = [spec for spec in workload.requests if spec.scheduled != 0]
    if late:
        raise UserError(
            f"this backend serves one batch that is due at 0 s; request {late[0].id} is due at "
            f"{late[0].scheduled:g} s: use a backend that can wait, such as stall"
        )


def check_prompts(config: ModelConfig, workload: Workload) -> int:
    """Positions of the longest request; UserError when the model cannot take a prompt."""
    longest = max(spec.prompt_len for spec in workload.requests)
    total = longest + max(spec.output_len for spec in workload.requests) - 1
    if total > config.max_context_len:
        raise UserError(
            f"{total} tokens are more than the {config.max_context_len} that {config.name} was "
            "trained for: ask for a shorter prompt or output"
        )
    prompts = [spec.prompt_token_ids for spec in workload.requests]
    check_token_ids(config, min(map(min, prompts)), max(map(max, prompts)))
    return total


def check_token_ids(config: ModelConfig, lowest: int, highest: int) -> None:
    """Refuse token ids outside the vocabulary: a runtime may read some other memory instead."""
    wrong = lowest if lowest < 0 else highest
    if not 0 <= wrong < config.vocab_size:
        raise UserError(
            f"token id {wrong} lies outside the vocabulary of {config.name} "
            f"({config.vocab_size} tokens)"
        )


def check_batch(
    config: ModelConfig,
    dtype: str,
    workload: Workload,
    cache_ratio: float,
    device: torch.device,
    more_bytes: float = 0,
) -> None:
    """Refuse a batch that the model was not made for, or that a CPU's memory cannot hold.

    `cache_ratio` as in `batch_bytes`; `more_bytes` come on top.
    """
    total = check_prompts(config, workload)
    needed = batch_bytes(config, dtype_bytes(dtype), workload, cache_ratio) + more_bytes
    what = f"a batch of {workload.batch_size} with {total} positions each"
    check_host_memory(needed, what, device)


def trace_of_batch(workload: Workload, step_times: Sequence[float], meta: dict) -> Trace:
    """The trace of one static batch whose step i ended `step_times[i]` seconds after the start.

    Every request gets one token a step until it has its `output_len`; it was scheduled and sent
    at 0.
    """
    requests = tuple(
        Request(
            id=spec.id,
            scheduled=0.0,
            sent=0.0,
            prompt_tokens=spec.prompt_len,
            events=tuple((time, 1) for time in step_times[: spec.output_len]),
        )
        for spec in workload.requests
    )
    return Trace(requests, {"label": "measured", **meta})


def prefill_bytes(config: ModelConfig, dtype_bytes: int, batch_size: int, prompt_len: int) -> int:
    """Bytes of the widest activations of a prefill: a batch needs at least these."""
    width = 2 * config.hidden_size + 2 * config.qkv_size + 3 * config.intermediate_size
    return batch_size * prompt_len * width * dtype_bytes


def batch_bytes(config: ModelConfig, dtype_bytes: int, workload: Workload, cache_ratio: float):
    """Bytes that a batch needs beside the weights, roughly: cache, widest activations, logits.

    `cache_ratio` scales the full cache (0: none is kept). Good to some 10 %: it is there to refuse
    what cannot fit, not to fill the memory to the brim.
    """
    batch = workload.batch_size
    prompt = max(spec.prompt_len for spec in workload.requests)
    total = prompt + max(spec.output_len for spec in workload.requests)
    cache = 2 * config.num_layers * config.kv_size * batch * total * cache_ratio
    pass_len = prompt if cache_ratio else total
    logits = batch * config.vocab_size * 2
    equal = len({spec.prompt_len for spec in workload.requests}) == 1
    mask = 0 if equal else 2 * batch * pass_len**2
    widest = prefill_bytes(config, dtype_bytes, batch, pass_len)
    return (cache + logits + mask) * dtype_bytes + widest
