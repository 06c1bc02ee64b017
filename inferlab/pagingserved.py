"""How many sequences run at a time in a store of a given size, and how fast? Measured.

The policies go through one and the same code: reserving for the maximum is a paged cache whose
blocks are as long as the longest text.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from inferlab import roofline
from inferlab.decoding.paged import PagedRun, run_paged
from inferlab.fitting import Fitted
from inferlab.hardware.probes import synchronize
from inferlab.kvcache import PagedCache
from inferlab.lengths import Lengths
from inferlab.models.config import ModelConfig
from inferlab.models.cost import prefill_cost
from inferlab.models.decoder import Decoder
from inferlab.models.placement import dtype_name
from inferlab.pagingbench import cache_shape, predict_step_s
from inferlab.pagingcost import footprint
from inferlab.recorder import Case
from inferlab.workload import random_prompt


def served_case(
    decoder: Decoder, requests: Sequence[Lengths], mix: str, policy: str, store_tokens: int,
    max_len: int, block_size: int, fitted: Fitted, seed: int = 0,
) -> Case:  # fmt: skip
    """All `requests` through a store of `store_tokens` positions that is really allocated.

    "maximum" is the same code with blocks of `max_len`: each sequence takes one. "known" lets a
    request enter when its whole answer has room, "paged" as soon as its prompt has.
    """
    config, device = decoder.config, decoder.device.type
    size = max_len if policy == "maximum" else block_size
    prompts = [
        random_prompt(config.vocab_size, request.prompt_len, seed, index)
        for index, request in enumerate(requests)
    ]
    outputs = [r.output_len for r in requests]
    when_full = "wait" if policy == "known" else "preempt"

    def run() -> dict[str, float]:
        num_blocks = store_tokens // size
        rows = min(len(requests), num_blocks)
        cache = PagedCache(
            cache_shape(config, rows, max_len), decoder.dtype, device, size, num_blocks
        )
        clock = _Clock(device)
        found = run_paged(decoder, prompts, outputs, cache, when_full, clock)
        return _metrics(found, outputs, clock, cache.num_bytes())

    params = {
        "phase": "served", "mix": mix, "policy": policy, "block_size": size,
        "model": config.name, "dtype": dtype_name(decoder.dtype), "max_len": max_len,
        "store_tokens": store_tokens, "num_requests": len(requests),
    }  # fmt: skip
    return Case(run, params, predict_served(config, decoder.dtype, device, requests, policy,
                                            store_tokens, max_len, block_size, fitted))  # fmt: skip


class _Clock:
    """Seconds of the prefills and of the decode steps of `run_paged`."""

    def __init__(self, device: str) -> None:
        self.device, self.prefill_s, self.step_s = device, 0.0, 0.0
        synchronize(device)
        self.last = time.perf_counter()

    def __call__(self, rows: Sequence[int], tokens: Sequence[int], is_step: bool) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if is_step:
            self.step_s += now - self.last
        else:
            self.prefill_s += now - self.last
        self.last = now


def _metrics(
    found: PagedRun, outputs: Sequence[int], clock: _Clock, store_bytes: int
) -> dict[str, float]:
    """Throughput of the whole run and of its steps alone, running sequences, waste, memory."""
    return {
        "output_tok_per_s": sum(outputs) / (clock.prefill_s + clock.step_s),
        "step_tok_per_s": sum(found.batch_sizes) / clock.step_s,
        "prefill_s": clock.prefill_s,
        "num_seqs": statistics.mean(found.batch_sizes),
        "num_steps": len(found.batch_sizes),
        "waste_ratio": found.waste_ratio,
        "num_preempted": found.num_preempted,
        "num_recomputed_tokens": found.recomputed_tokens,
        "store_bytes": store_bytes,
    }


def predict_served(
    config: ModelConfig, dtype: torch.dtype, device: str, requests: Sequence[Lengths],
    policy: str, store_tokens: int, max_len: int, block_size: int, fitted: Fitted,
) -> dict[str, float]:  # fmt: skip
    """Running sequences by footprint, and the time of all prefills and steps at that number."""
    reserved = footprint(requests, policy, max_len, block_size)
    num_seqs = min(reserved.num_seqs(store_tokens), len(requests))
    paged = None if policy == "maximum" else block_size
    name = dtype_name(dtype)
    step_s = predict_step_s(
        config, dtype, device, max(1, round(num_seqs)), round(reserved.mean_held), paged, fitted
    )
    read_s = sum(
        roofline.predict_s(
            prefill_cost(config, name, 1, r.prompt_len), fitted.prefill, r.prompt_len
        )
        for r in requests
    )
    wall_s = read_s + reserved.steps / num_seqs * step_s
    return {
        "num_seqs": num_seqs,
        "waste_ratio": footprint(requests, "paged", max_len, block_size).waste_ratio
        if policy != "maximum"
        else reserved.waste_ratio,
        "output_tok_per_s": sum(r.output_len for r in requests) / wall_s,
        "step_tok_per_s": num_seqs / step_s,
    }
