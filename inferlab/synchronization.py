"""What does a clock show that does not wait for the device?

Chapter: chapters/01_metrics.md    Lab: labs/01_metrics.ipynb
"""

from __future__ import annotations

import time

import torch

from inferlab.backends.torch import TorchBackend
from inferlab.bench import Shape
from inferlab.hardware.probes import synchronize
from inferlab.recorder import Case
from inferlab.timing import Run


def runs_ahead(device: torch.device) -> bool:
    """Whether a call returns before the device has done the work: not so on a CPU."""
    return device.type != "cpu"


def synchronization_cases(backend: TorchBackend, shape: Shape) -> dict[str, Case]:
    """The same work timed with and without waiting for it; empty where a call is the work.

    Each case reports `prefill_s` of the whole batch and `step_s`, the mean of its decode steps.
    """
    if not runs_ahead(backend.decoder.device):
        return {}
    described = {
        "model": backend.config.name,
        "dtype": backend.dtype,
        "batch_size": shape.batch_size,
        "prompt_len": shape.prompt_len,
        "output_len": shape.output_len,
    }
    return {
        f"sync/{name}": Case(_timed(backend, shape, waits), {**described, "synchronized": waits})
        for name, waits in (("without", False), ("with", True))
    }


def _timed(backend: TorchBackend, shape: Shape, waits: bool) -> Run:
    decoder = backend.decoder
    steps = max(1, shape.output_len - 1)
    total = shape.prompt_len + steps
    token_ids = torch.zeros(shape.batch_size, total, dtype=torch.int64, device=decoder.device)
    positions = torch.arange(total, device=decoder.device).unsqueeze(0)

    def clock() -> float:
        if waits:
            synchronize(decoder.device)
        return time.perf_counter()

    @torch.inference_mode()
    def run() -> dict[str, float]:
        cache = decoder.new_cache(backend.cache, shape.batch_size, total)
        synchronize(decoder.device)
        start = time.perf_counter()
        end = shape.prompt_len
        decoder(token_ids[:, :end], cache, positions[:, :end])
        first = clock()
        for at in range(end, total):
            decoder(token_ids[:, at : at + 1], cache, positions[:, at : at + 1])
        last = clock()
        synchronize(decoder.device)  # or the next case would pay for this one
        return {"prefill_s": first - start, "step_s": (last - first) / steps}

    return run
