"""How does the time of a step grow with the size of the model, at one depth?

Random weights of scaled-down shapes: as many operators, fewer bytes. Below some size a step takes
what its operators take to start.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from inferlab import bench, roofline, stepcost
from inferlab.backends.torch import TorchBackend
from inferlab.calibration import reading_s, weight_bandwidth
from inferlab.decoding.steps import make_stepper
from inferlab.hardware.probes import synchronize
from inferlab.launchprobes import LaunchCosts
from inferlab.models.config import ModelConfig
from inferlab.models.cost import decode_cost
from inferlab.models.decoder import Decoder
from inferlab.models.load import load_decoder
from inferlab.recorder import Case
from inferlab.roofline import Ceilings
from inferlab.stepbench import Rung, count_step, host_s


@torch.inference_mode()
def step_seconds(call: Callable, decoder: Decoder, cache: Any, context_len: int, steps: int):
    """Seconds of each of `steps` steps that follow `context_len` positions of `cache`."""
    device = decoder.device
    batch = cache.shape.batch_size if hasattr(cache, "shape") else 1
    token_ids = torch.full((batch, 1), 1, device=device)
    places = torch.arange(context_len, context_len + steps, device=device)
    found = []
    for index in range(steps):
        synchronize(device)
        start = time.perf_counter()
        call(token_ids, cache, places[None, index : index + 1])
        synchronize(device)
        found.append(time.perf_counter() - start)
    return found


def size_case(
    config: ModelConfig,
    dtype: str,
    device: str,
    rung: Rung,
    context_len: int,
    steps: int,
    costs: LaunchCosts,
    limits: Ceilings,
) -> Case:
    """Steps of a model of this size, random weights: made, warmed up and counted here.

    Of `limits` its prediction takes the arithmetic; the bandwidth is that of a working set of its
    own size, since a small model lies in the caches.
    """
    decoder = load_decoder(config, dtype, device, "random", pack=rung.pack)
    stepper = make_stepper(decoder, rung.step)
    cache = stepper.new_cache(rung.cache, 1, context_len + steps)
    prompt = torch.ones(1, context_len, dtype=torch.int64, device=device)
    positions = torch.arange(context_len, device=device)[None]

    def run() -> dict[str, float]:
        cache.reset()
        with torch.inference_mode():
            stepper(prompt, cache, positions)
        seconds = step_seconds(stepper, decoder, cache, context_len, steps)
        return {
            "step_s": statistics.median(seconds),
            "fastest_step_s": min(seconds),
            "floor_s": reading_s(int(cost.bytes), device),
        }

    shape = bench.Shape(1, context_len, steps)
    cost = decode_cost(config, dtype, 1, shape.mean_context_len)
    run()
    counts = count_step(TorchBackend(stepper, rung.cache, weights="random"))
    limits = dataclasses.replace(limits, read_bytes_per_s=weight_bandwidth(config, dtype, device))
    host = host_s(rung, counts, costs)
    overlaps = torch.device(device).type == "cuda"
    params = {
        "rung": rung.name, "model": config.name, "hidden_size": config.hidden_size,
        "dtype": dtype, "read_bytes": cost.bytes, "context_len": context_len, "batch_size": 1,
        "operators": counts.operators, "kernels": counts.kernels,
    }  # fmt: skip
    predicted = {
        "step_s": stepcost.predict_step_s(cost, limits, host, overlaps),
        "floor_s": roofline.floor_s(cost, limits),
        "host_s": host,
    }
    return Case(run, params, predicted)
