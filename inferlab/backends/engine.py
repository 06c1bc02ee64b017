"""How does our engine serve requests that come when they come?

In real time: a request enters the line when it is due, joins between two steps, and its tokens are
stamped when the step that made them has ended on the device.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

from inferlab.backends.base import BackendRun, check_prompts
from inferlab.decoding.steps import check_step
from inferlab.errors import UserError
from inferlab.kvcache.paged import BLOCK_SIZE
from inferlab.models.config import ModelConfig
from inferlab.models.cost import kv_bytes_per_token
from inferlab.models.decoder import Decoder
from inferlab.models.load import load_decoder
from inferlab.models.placement import check_host_memory, dtype_name, torch_device
from inferlab.serving.engine import STEPS, Engine
from inferlab.serving.scheduler import QueueFull
from inferlab.trace import Request, Trace
from inferlab.workload import RequestSpec, Workload


class EngineBackend:
    """An engine behind a clock; `options` are those of `Engine`.

    Without `max_num_seqs` the engine has a row, and without `num_blocks` room, for every request
    of the workload. It is made before the clock starts and kept while it fits.
    """

    name = "engine"

    def __init__(self, decoder: Decoder, weights: str = "real", **options: Any) -> None:
        self.decoder, self.weights, self.options = decoder, weights, options
        self.config = decoder.config
        self.dtype = dtype_name(decoder.dtype)
        self.step = options.get("step", "eager")
        self.engine: Engine | None = None

    @property
    def device(self) -> torch.device:
        """Where the decoder lies."""
        return self.decoder.device

    def run(self, workload: Workload) -> BackendRun:
        """Serve all requests; times in the trace are seconds from the start.

        A request that finds the line full is an error in the trace. UserError when one cannot be
        served at all.
        """
        if not workload.requests:
            raise UserError("the workload has no requests")
        check_prompts(self.config, workload)
        engine = self._prepare(workload)
        before = engine.stats()
        sent: dict[str, float] = {}
        events: dict[str, list[tuple[float, int]]] = {spec.id: [] for spec in workload.requests}
        tokens: dict[str, list[int]] = {spec.id: [] for spec in workload.requests}
        errors: dict[str, str] = {}
        due = deque(workload.requests)
        start = time.perf_counter()
        try:
            while due or engine.has_work:
                now_s = time.perf_counter() - start
                while due and due[0].scheduled <= now_s:
                    spec = due.popleft()
                    sent[spec.id] = now_s
                    try:
                        engine.add_request(spec.id, spec.prompt_token_ids, spec.output_len)
                    except QueueFull as error:
                        errors[spec.id] = str(error)
                if not engine.has_work:
                    time.sleep(max(0.0, due[0].scheduled - now_s) if due else 0.0)
                    continue
                outputs = engine.step()
                now_s = time.perf_counter() - start
                for output in outputs:
                    events[output.seq_id].append((now_s, 1))
                    tokens[output.seq_id].append(output.token_id)
        finally:
            for spec in workload.requests:  # after an error nothing of this run may stay
                engine.cancel(spec.id)
        requests = tuple(
            _request(spec, sent[spec.id], events[spec.id], errors.get(spec.id))
            for spec in workload.requests
        )
        after = engine.stats()
        counters = ("num_steps", "num_preempted", "computed_tokens", "cached_tokens")
        meta = {
            "label": "measured", "backend": self.name, "model": self.config.name,
            "weights": self.weights, "dtype": self.dtype, "device": self.device.type,
            "step": self.step, "policy": engine.scheduler.policy,
            "chunk_size": engine.scheduler.chunk_size,
            "max_num_seqs": engine.scheduler.max_num_seqs,
            "num_blocks": after.num_blocks, "block_size": engine.cache.block_size,
            "prefix_cache": engine.scheduler.prefixes is not None,
            **{name: getattr(after, name) - getattr(before, name) for name in counters},
        }  # fmt: skip
        return BackendRun(Trace(requests, meta), [tokens[spec.id] for spec in workload.requests])

    def release(self) -> None:
        """Let go of the engine and its cache."""
        self.engine = None

    def _prepare(self, workload: Workload) -> Engine:
        """An engine that is idle, with room for the workload where nothing else was asked for."""
        if len({spec.id for spec in workload.requests}) < workload.batch_size:
            raise UserError("two requests of the workload have the same id: give each its own")
        block_size = self.options.get("block_size", BLOCK_SIZE)
        blocks = sum(-(-(s.prompt_len + s.output_len) // block_size) for s in workload.requests)
        sizes = {"max_num_seqs": workload.batch_size, "num_blocks": blocks}
        if self.engine is not None:
            held = {
                "max_num_seqs": self.engine.scheduler.max_num_seqs,
                "num_blocks": self.engine.cache.manager.num_blocks,
            }
            if all(name in self.options or held[name] >= least for name, least in sizes.items()):
                return self.engine
        self.release()
        options = {**sizes, **self.options}
        needed = kv_bytes_per_token(self.config, self.dtype) * options["num_blocks"] * block_size
        what = f"a cache of {options['num_blocks']} blocks of {block_size} positions"
        check_host_memory(needed, what, self.device)
        least = options["max_num_seqs"]
        options.setdefault("max_num_batched_tokens", max(2048, least))
        self.engine = Engine(self.decoder, **options)
        return self.engine


def _request(
    spec: RequestSpec, sent_s: float, events: list[tuple[float, int]], error: str | None
) -> Request:
    return Request(
        spec.id, spec.scheduled, sent_s, spec.prompt_len, tuple(events),
        status="error" if error else "ok", error=error,
    )  # fmt: skip


def load(
    model: str | ModelConfig,
    dtype: str,
    device: str,
    weights: str = "real",
    max_num_seqs: int | None = None,
    cache_tokens: int | None = None,
    num_blocks: int | None = None,
    block_size: int = BLOCK_SIZE,
    max_num_batched_tokens: int | None = None,
    chunk_size: int | None = None,
    policy: str = "continuous",
    prefix_cache: bool = False,
    max_waiting: int | None = None,
    max_len: int | None = None,
    step: str = "eager",
    seed: int = 0,
) -> EngineBackend:
    """Load the decoder; `cache_tokens` is `num_blocks` in positions, `seed` that of random weights.

    The other options are those of `Engine`; None leaves one to it, or to the workload.
    """
    if step not in STEPS:
        raise UserError(f"unknown step {str(step)[:40]!r}; known: {', '.join(STEPS)}")
    check_step(step, torch_device(device))
    if cache_tokens is not None:
        if num_blocks is not None:
            raise UserError("cache_tokens and num_blocks say the same: give one of them")
        if cache_tokens < block_size:
            raise UserError(f"cache_tokens must be at least a block of {block_size} positions")
        num_blocks = cache_tokens // block_size
    given = {
        "max_num_seqs": max_num_seqs, "num_blocks": num_blocks, "chunk_size": chunk_size,
        "max_num_batched_tokens": max_num_batched_tokens, "max_waiting": max_waiting,
        "max_len": max_len,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    options |= {"block_size": block_size, "policy": policy, "prefix_cache": prefix_cache}
    decoder = load_decoder(model, dtype, device, weights, seed=seed, pack=step == STEPS[0])
    return EngineBackend(decoder, weights, step=step, **options)
