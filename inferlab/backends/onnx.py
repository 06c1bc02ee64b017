"""How fast does ONNX Runtime GenAI, a runtime made for speed, serve a batch of the same model?

The strong peer: its own exporter, graph fusions and low-bit kernels; greedy, static cache. What
makes a comparison in one process fair: left alone, GenAI takes half of the cores, so it gets as
many threads as torch; its threads go on spinning after a run, which slows down torch's next
prefill, and without any spinning its own steps are slower, so they spin during a run and stop at
its end.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inferlab.backends.base import (
    BackendRun,
    check_batch,
    check_static_batch,
    check_token_ids,
    trace_of_batch,
)
from inferlab.backends.genai import check_provider, import_genai
from inferlab.errors import MeasurementError, UserError
from inferlab.models.config import ModelConfig
from inferlab.models.equivalent import equivalent_config
from inferlab.models.load import resolve_config
from inferlab.models.onnx_export import ExportOptions, ensure_export
from inferlab.models.onnx_graph import FULL_GRAPH, LAST_GRAPH, BlockFormat, read_graph
from inferlab.models.placement import BatchTooLarge, check_host_memory, torch_device
from inferlab.workload import Workload

NO_TOKEN = -1  # fills up shorter prompts: a token id that no prompt can have
END_TOKEN_TRIALS = 16
MOST_ROWS = 32  # sequences that GenAI takes at once
# What the graphs keep activations and the KV cache in, by device and precision.
ACTIVATIONS = {
    "cpu": {"int4": "float32", "int8": "float32", "fp32": "float32"},
    "cuda": {
        "int4": "float16",
        "int8": "float16",
        "fp16": "float16",
        "bf16": "bfloat16",
        "fp32": "float32",
    },
}
# Greedy whatever the model's generation_config.json asks for.
GREEDY_SEARCH = {
    "do_sample": False,
    "num_beams": 1,
    "min_length": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


class OnnxBackend:
    """An exported model in ONNX Runtime GenAI.

    `kept` and `weight_format` say which products read quantized weights and at how many bytes, as
    for the torch backend; `graph` says it in full, counted from the file.
    """

    name = "onnx"
    kept: tuple[str, ...] = ()

    def __init__(
        self, folder: Path, config: ModelConfig, dtype: str, export: ExportOptions, threads: int
    ) -> None:
        self.folder = folder
        self.config = config
        self.dtype = dtype
        self.export = export
        self.threads = threads
        self.device = torch.device(export.device)
        self.weights = export.weights
        self.graph = read_graph(folder / FULL_GRAPH)
        self._genai = import_genai()
        self._models: dict[str, Any] = {}
        self._end_token = config.vocab_size - 1
        self._model(LAST_GRAPH)  # a file that does not load is said now

    @property
    def weight_format(self) -> BlockFormat | None:
        """How the products' weights are stored; None in float."""
        return self.graph.weight_format

    def bytes_per_step(self) -> int:
        """Weight bytes that one decode step reads, counted from the graph; without the cache."""
        return self.graph.step_bytes

    def run(self, workload: Workload) -> BackendRun:
        """Serve one static batch; each step's tokens are on the host when its clock is read.

        Shorter prompts are filled up on the right, as GenAI does it, and then the head computes
        logits of all prompt positions. The cache is allocated before the clock starts.
        """
        check_static_batch(workload)
        prompts = [spec.prompt_token_ids for spec in workload.requests]
        longest = max(map(len, prompts))
        steps = max(spec.output_len for spec in workload.requests)
        equal = all(len(prompt) == longest for prompt in prompts)
        self._check_memory(workload, equal)
        padded = [[*prompt, *[NO_TOKEN] * (longest - len(prompt))] for prompt in prompts]
        tokens, times = self._generate(LAST_GRAPH if equal else FULL_GRAPH, padded, steps)
        token_ids = [
            row[: spec.output_len]
            for row, spec in zip(tokens.tolist(), workload.requests, strict=True)
        ]
        return BackendRun(trace_of_batch(workload, times, self._meta()), token_ids)

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, V] in float32 on the host for `token_ids` [B, T]: all positions."""
        rows = token_ids.tolist()
        if token_ids.dim() != 2 or not rows or not rows[0]:
            raise UserError(f"token ids must be [B, T] with B, T >= 1, not {list(token_ids.shape)}")
        check_token_ids(self.config, int(token_ids.min()), int(token_ids.max()))
        needed = 2 * 4 * token_ids.numel() * self.config.vocab_size
        check_host_memory(needed, f"logits of {token_ids.numel()} positions", torch.device("cpu"))
        parts = []
        try:
            for start in range(0, len(rows), MOST_ROWS):
                part = rows[start : start + MOST_ROWS]
                generator = self._generator(FULL_GRAPH, part, 1)
                generator.append_tokens(np.array(part, dtype=np.int32))
                parts.append(np.array(generator.get_output("logits"), dtype=np.float32))
        except RuntimeError as error:
            raise _readable(error) from error
        return torch.from_numpy(np.concatenate(parts))

    def _generate(
        self, graph: str, padded: list[list[int]], steps: int
    ) -> tuple[np.ndarray, list[float]]:
        """Tokens [B, steps], and the end of each step in seconds from the start.

        GenAI must have an end-of-text token, and a sequence that reaches it ends. Lengths are
        exact here: when it came up, another one that did not is named and the batch runs again.
        """
        for _ in range(END_TOKEN_TRIALS):
            tokens, times = [], []
            try:
                generator = self._generator(graph, padded, steps)
                start = time.perf_counter()
                generator.append_tokens(np.array(padded, dtype=np.int32))
                while len(tokens) < steps and not (tokens and generator.is_done()):
                    generator.generate_next_token()
                    tokens.append(np.array(generator.get_next_tokens()))
                    times.append(time.perf_counter() - start)
            except RuntimeError as error:
                raise _readable(error) from error
            found = np.stack(tokens, axis=1)
            if len(tokens) == steps and NO_TOKEN not in found:
                return found, times
            seen = {self._end_token, *found.flatten().tolist()}
            unseen = [t for t in reversed(range(self.config.vocab_size)) if t not in seen]
            if not unseen:
                break
            self._end_token = unseen[0]
            self.release()
        raise MeasurementError(
            "ONNX Runtime GenAI ends sequences early whatever token is named their end: use a "
            "shorter output or a larger vocabulary"
        )

    def release(self) -> None:
        """Let go of both graphs' sessions; the next use loads them again."""
        self._models.clear()

    def _meta(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "model": self.config.name,
            "weights": self.weights,
            "dtype": self.dtype,
            "device": self.device.type,
            "cache": "static",
            "precision": self.export.precision,
            "accuracy_level": self.graph.accuracy_level,
            "threads": self.threads,
        }

    def _generator(self, graph: str, rows: list[list[int]], steps: int) -> Any:
        model = self._model(graph)
        params = self._genai.GeneratorParams(model)
        params.set_search_options(
            batch_size=len(rows), max_length=len(rows[0]) + steps, **GREEDY_SEARCH
        )
        return self._genai.Generator(model, params)

    def _model(self, graph: str) -> Any:
        if graph not in self._models:
            session = {
                "intra_op_num_threads": self.threads,
                "session.force_spinning_stop": "1",
                "log_severity_level": 4,
            }
            decoder = {"filename": graph, "session_options": session}
            model = {"eos_token_id": self._end_token, "pad_token_id": NO_TOKEN, "decoder": decoder}
            try:
                settings = self._genai.Config(str(self.folder))
                settings.overlay(json.dumps({"model": model}))
                settings.clear_providers()
                if self.device.type != "cpu":
                    settings.append_provider(self.device.type)
                self._models[graph] = self._genai.Model(settings)
            except RuntimeError as error:
                raise _readable(
                    error, f"cannot load {graph}, delete {self.folder} and run again"
                ) from error
        return self._models[graph]

    def _check_memory(self, workload: Workload, equal: bool) -> None:
        more = 0
        if not equal:  # logits of all prompt positions
            longest = max(spec.prompt_len for spec in workload.requests)
            more = 4 * workload.batch_size * longest * self.config.vocab_size
        check_batch(self.config, self.dtype, workload, 1.0, self.device, more)


def load(
    model: str | ModelConfig,
    dtype: str,
    device: str,
    precision: str = "int4",
    equivalent: str = "plain",
    weights: str = "real",
    seed: int = 0,
    block_size: int = 32,
    is_symmetric: bool = True,
    accuracy_level: int | None = None,
    threads: int | None = None,
) -> OnnxBackend:
    """Export the model if that was not done yet (about 10 s), and load the export.

    `dtype` is what activations and the KV cache are kept in, and follows from the precision:
    float32 on a CPU. `equivalent` and `seed` are those of `load_equivalent`; `block_size`,
    `is_symmetric` and `accuracy_level` those of ExportOptions; `threads` is torch's own number
    unless given (CPU).
    """
    config = resolve_config(model)
    if torch_device(device).index:
        raise UserError(
            f"backend onnx runs on the first GPU, not on {device}: choose --device cuda"
        )
    place = torch_device(device).type
    export = ExportOptions(
        precision, equivalent, seed, weights, place, block_size, is_symmetric, accuracy_level
    )
    if dtype != (needed := ACTIVATIONS[place][precision]):
        raise UserError(
            f"the {precision} export keeps activations and the KV cache in {needed} on {place}, "
            f"not in {str(dtype)[:40]}: choose dtype {needed}"
        )
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise UserError(f"threads must be at least 1, not {threads}")
    target = equivalent_config(config, equivalent)
    import_genai()  # says what is missing before seconds are spent
    check_provider(place)
    return OnnxBackend(ensure_export(config, export), target, dtype, export, threads)


def _readable(error: RuntimeError, what: str = "ONNX Runtime GenAI failed") -> Exception:
    """One line of the runtime's message; BatchTooLarge when memory ran out."""
    first = (str(error).strip().splitlines() or ["no message"])[0][:200]
    if "allocate" in first or "out of memory" in first.lower():
        return BatchTooLarge(f"{what}: {first}; choose a smaller batch or a shorter context")
    return MeasurementError(f"{what}: {first}")
