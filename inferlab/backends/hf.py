"""How fast does transformers' `generate` serve a batch, used the way everybody uses it?

The baseline of the book: scaled-dot-product attention, dynamic cache, greedy, no compilation.
Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inferlab.backends.base import (
    BackendRun,
    check_batch,
    check_static_batch,
    trace_of_batch,
)
from inferlab.decoding.generate import PAD_TOKEN_ID
from inferlab.hardware.probes import synchronize
from inferlab.models.config import ModelConfig
from inferlab.models.cost import weight_bytes
from inferlab.models.hf import quiet_imports, to_hf_config
from inferlab.models.load import ensure_model, open_weights, resolve_config
from inferlab.models.placement import check_host_memory, torch_device, torch_dtype
from inferlab.quant.torchao_linear import preload
from inferlab.workload import Workload


class StepClock:
    """A streamer that keeps the time of each step instead of the text.

    `generate` hands over the prompt first, then the tokens of each step, already on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Called once with the prompts, then after each step."""
        synchronize(self.device)
        self.calls.append(time.perf_counter())

    def end(self) -> None:
        """Called when generation is over."""

    @property
    def step_times(self) -> list[float]:
        """Time at the end of each step, on `time.perf_counter`'s clock."""
        return self.calls[1:]


class HFBackend:
    """A transformers model and its `generate`."""

    name = "hf"

    def __init__(
        self, model: Any, config: ModelConfig, dtype: str, device: torch.device, weights: str
    ) -> None:
        self.model = model
        self.config = config
        self.dtype = dtype
        self.device = device
        self.weights = weights
        # The output length is exact: no token ends a sequence.
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD_TOKEN_ID

    def run(self, workload: Workload) -> BackendRun:
        """Serve one static batch, left-padded; the device is synchronized at each step."""
        check_static_batch(workload)
        check_batch(self.config, self.dtype, workload, 1.1, self.device)
        lengths = [spec.prompt_len for spec in workload.requests]
        output_lens = [spec.output_len for spec in workload.requests]
        longest, steps = max(lengths), max(output_lens)
        padded = [
            [PAD_TOKEN_ID] * (longest - spec.prompt_len) + list(spec.prompt_token_ids)
            for spec in workload.requests
        ]
        mask = [[0] * (longest - length) + [1] * length for length in lengths]
        clock = StepClock(self.device)
        synchronize(self.device)
        start = time.perf_counter()
        output = self.model.generate(
            torch.tensor(padded, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            max_new_tokens=steps,
            do_sample=False,
            use_cache=True,
            streamer=clock,
        )
        rows = output[:, longest:].tolist()
        token_ids = [row[:length] for row, length in zip(rows, output_lens, strict=True)]
        meta = {
            "backend": self.name,
            "model": self.config.name,
            "weights": self.weights,
            "dtype": self.dtype,
            "device": self.device.type,
            "cache": "dynamic",
        }
        times = [moment - start for moment in clock.step_times]
        return BackendRun(trace_of_batch(workload, times, meta), token_ids)


def load(
    model: str | ModelConfig, dtype: str, device: str, weights: str = "real", seed: int = 0
) -> HFBackend:
    """Load the model; random weights are those of the torch backend with the same seed."""
    with quiet_imports():
        from transformers import AutoModelForCausalLM

    preload()
    config = resolve_config(model)
    number, place = torch_dtype(dtype), torch_device(device)
    check_host_memory(weight_bytes(config, dtype), f"loading {config.name} in {dtype}", place)
    with _no_progress_bars():
        if weights == "real":
            open_weights(config, number, place)  # refuses a shape without published weights
            loaded = AutoModelForCausalLM.from_pretrained(
                ensure_model(config.name),
                dtype=number,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
            ).to(place)
        else:
            tensors = open_weights(config, number, place, weights, seed)
            with torch.device(place):
                loaded = AutoModelForCausalLM.from_config(
                    to_hf_config(config), dtype=number, attn_implementation="sdpa"
                )
            with torch.no_grad():
                for name, parameter in loaded.named_parameters():
                    parameter.copy_(tensors[name])
    return HFBackend(loaded.eval(), config, dtype, place, weights)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """A bar for half a second of loading would end up in a notebook's outputs."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
