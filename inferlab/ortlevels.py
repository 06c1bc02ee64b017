"""What does each graph optimization level of ONNX Runtime make of one decode step?

One graph (`models.onnx_step`), opened once a level: how many nodes run, how long a step takes, and
whether its logits are still those of our decoder.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inferlab.backends.genai import PROVIDERS, SILENT, check_provider, import_runtime
from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.models.cost import weight_bytes
from inferlab.models.decoder import Decoder
from inferlab.models.onnx_step import check_packages, ensure_step, past_names
from inferlab.models.placement import check_host_memory, torch_device
from inferlab.recorder import Case

# As ONNX Runtime names them; each does what the one before it does, and more.
LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class StepSession:
    """A decode step in ONNX Runtime at one level, with a cache that it is handed and hands back."""

    def __init__(
        self, path: Path, config: ModelConfig, level: str, device: str = "cpu", threads: int = 0
    ) -> None:
        if level not in LEVELS:
            raise UserError(f"unknown level {str(level)[:40]!r}; known: {', '.join(LEVELS)}")
        self.config, self.level = config, level
        self.device = torch_device(device).type
        self._runtime = _runtime(self.device)
        self._names = past_names(config)
        began = time.perf_counter()
        self._session, self._profile = self._open(path, threads)
        self.load_s = time.perf_counter() - began
        self.past: list[Any] = []
        self.context_len = 0

    def _open(self, path: Path, threads: int) -> tuple[Any, tempfile.TemporaryDirectory]:
        runtime, options = self._runtime, self._runtime.SessionOptions()
        options.graph_optimization_level = getattr(
            runtime.GraphOptimizationLevel, LEVELS[self.level]
        )
        options.log_severity_level = SILENT
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Left spinning, its threads would slow down whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        folder = tempfile.TemporaryDirectory(prefix="inferlab-ort-")
        options.enable_profiling = True  # until `count_nodes` ends it
        options.profile_file_prefix = str(Path(folder.name) / "nodes")
        providers = list(dict.fromkeys((PROVIDERS[self.device], PROVIDERS["cpu"])))
        try:
            return runtime.InferenceSession(str(path), options, providers=providers), folder
        except Exception as error:  # the runtime has its own classes, made at import
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"ONNX Runtime cannot open {path.name} ({reason[:160]}): delete {path.parent} and "
                "run again"
            ) from error

    def fill(self, past: Sequence[np.ndarray]) -> None:
        """Take over a cache: keys and values [1, G, S, D] in float32, layer by layer."""
        if len(past) != len(self._names):
            raise UserError(f"a cache has {len(self._names)} tensors here, not {len(past)}")
        value = self._runtime.OrtValue.ortvalue_from_numpy
        self.past = [value(np.ascontiguousarray(one), self.device, 0) for one in past]
        self.context_len = past[0].shape[2]

    def step(self, token: int, keep: bool = True) -> np.ndarray:
        """Logits [V] after `token`; with `keep` the cache grows, else it stays as it was."""
        if not self.past:
            raise UserError("the cache is empty: fill it with that of a prompt first")
        binding = self._session.io_binding()
        binding.bind_cpu_input("token_ids", np.array([[token]], dtype=np.int64))
        binding.bind_cpu_input("positions", np.array([[self.context_len]], dtype=np.int64))
        for name, value in zip(self._names, self.past, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._names:
            binding.bind_output(name.replace("past", "present"), self.device)
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        if keep:
            self.past = present
            self.context_len += 1
        return logits.numpy()[0]

    def count_nodes(self) -> int:
        """Nodes that a step runs, from ONNX Runtime's own profile of all steps so far.

        Ends the profile: call it once, before anything is timed, as what is profiled takes longer.
        """
        self.step(0, keep=False)
        file = Path(self._session.end_profiling())
        names = [event["name"] for event in json.loads(file.read_text()) if "name" in event]
        self._profile.cleanup()
        return sum(name.endswith("_kernel_time") for name in names) // names.count("model_run")


def open_levels(
    config: ModelConfig,
    graph: str = "traced",
    weights: str = "real",
    device: str = "cpu",
    levels: Iterable[str] = tuple(LEVELS),
) -> dict[str, StepSession]:
    """One session a level over one graph; needs memory for the float32 weights of each."""
    wanted = list(levels)
    _runtime(torch_device(device).type)  # says what is missing before seconds are spent
    path = ensure_step(config, graph, weights)
    needed = 2 * len(wanted) * weight_bytes(config, "float32")
    check_host_memory(needed, f"{len(wanted)} ONNX Runtime sessions", torch.device("cpu"))
    return {level: StepSession(path, config, level, device) for level in wanted}


def usable_device(device: str) -> tuple[str | None, str]:
    """Where levels can be timed: `device`, else cpu, else nowhere; and why not on `device`."""
    why = ""
    for place in dict.fromkeys((torch_device(device).type, "cpu")):
        try:
            check_packages()
            _runtime(place)
        except UserError as error:
            why = why or str(error)
        else:
            return place, why
    return None, why


@torch.inference_mode()
def prompt_cache(decoder: Decoder, token_ids: Sequence[int]) -> tuple[list[np.ndarray], int]:
    """Keys and values of a prompt as `fill` takes them, and the token that follows it."""
    ids = torch.tensor([list(token_ids)], device=decoder.device)
    cache = _Kept()
    positions = torch.arange(ids.shape[1], device=decoder.device)[None]
    logits = decoder(ids, cache, positions)
    return [tensor.float().cpu().numpy() for tensor in cache.tensors], int(logits.argmax())


def write(session: StepSession, past: Sequence[np.ndarray], token: int, steps: int) -> list[int]:
    """`token` and the `steps` greedy tokens that follow it."""
    session.fill(past)
    written = [token]
    for _ in range(steps):
        written.append(int(session.step(written[-1]).argmax()))
    return written


def level_case(session: StepSession, graph: str, nodes: int, steps: int = 5) -> Case:
    """A case of one level: `steps` steps at the context that the session was filled with."""

    def run() -> dict[str, float]:
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            session.step(0, keep=False)
            seconds.append(time.perf_counter() - start)
        return {"step_s": float(np.median(seconds)), "fastest_step_s": min(seconds)}

    params = {
        "variant": f"ort-{session.level}", "level": session.level, "graph": graph,
        "model": session.config.name, "dtype": "float32", "batch_size": 1,
        "context_len": session.context_len + 1, "nodes": nodes, "load_s": session.load_s,
    }  # fmt: skip
    return Case(run, params)


class _Kept:
    """Keeps the keys and values of one pass over a prompt."""

    recomputes = False
    length = 0

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.tensors += [keys, values]
        return keys, values

    def advance(self, num_positions: int) -> None:
        self.length += num_positions


def _runtime(device: str) -> Any:
    """onnxruntime; a UserError where it is missing or has no such device."""
    runtime = import_runtime()
    check_provider(device)
    return runtime
