"""What makes a compiled step slow that should be fast, one cause at a time?

The same step, compiled with the right settings and with each of them undone: weights left as they
are (re-ordered at each product), a cache that is one tensor for all layers (copied whole at each
write), shapes that grow with the text, attention that the compiler cannot see into. On a model with
few layers, which compiles in seconds.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import atexit
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from inferlab.decoding.compiled import decode_step, own_code
from inferlab.errors import UserError
from inferlab.hardware.probes import synchronize
from inferlab.models.decoder import Decoder
from inferlab.recorder import Case

Stores = list[torch.Tensor] | torch.Tensor  # one a layer, or one for all
# What a functionalized graph writes a cache with: each returns a whole new tensor.
WRITES = ("scatter", "slice_scatter", "select_scatter", "index_put", "index_copy")


@dataclass(frozen=True, slots=True)
class Setting:
    """How a step is compiled; `eager` not at all."""

    name: str
    what: str
    eager: bool = False
    freezes: bool = True
    stacked: bool = False
    grows: bool = False
    fusible: bool = True  # attention in operations that the compiler can fuse
    mode: str = "default"


SETTINGS = {
    one.name: one
    for one in (
        Setting("eager", "plain weights, operation by operation", eager=True, fusible=False),
        Setting("right", "frozen weights, a tensor a layer, fixed shapes"),
        Setting("plain weights", "no freezing: weights re-ordered at each product", freezes=False),
        Setting("stacked cache", "one tensor for all layers: copied at each write", stacked=True),
        # Freezing fails on shapes that grow, so this one is compared with plain weights.
        Setting("growing shapes", "the cache's length a symbol", freezes=False, grows=True),
        Setting("kernel attention", "attention by PyTorch's own kernel", fusible=False),
        Setting("max-autotune", "products searched for", mode="max-autotune-no-cudagraphs"),
    )
}


def cold_compiler() -> str:
    """Let this process compile into an empty folder, removed at its end; returns its path.

    Inductor keeps what it compiled in a folder for all processes: without this, a second run of a
    lab would report compile times of next to nothing.
    """
    folder = tempfile.mkdtemp(prefix="inferlab-inductor-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    return folder


def make_stores(decoder: Decoder, capacity: int, stacked: bool) -> tuple[Stores, Stores]:
    """Keys and values [1, G, capacity, D] a layer: tensors of their own, or parts of one each."""
    config = decoder.config
    size = (1, config.num_kv_heads, capacity, config.head_dim)
    factory = {"dtype": decoder.dtype, "device": decoder.device}
    if stacked:
        keys, values = (torch.zeros(config.num_layers, *size, **factory) for _ in range(2))
        return keys, values
    keys, values = (
        [torch.zeros(size, **factory) for _ in range(config.num_layers)] for _ in range(2)
    )
    return keys, values


class TrapStep:
    """A step of `decoder` over a cache of `capacity` positions, compiled as `setting` says.

    Call it with a position: logits [1, V] of the token that stands there.
    """

    def __init__(self, decoder: Decoder, setting: str, capacity: int) -> None:
        if setting not in SETTINGS:
            raise UserError(f"unknown setting {str(setting)[:40]!r}; known: {', '.join(SETTINGS)}")
        self.setting = SETTINGS[setting]
        self.decoder, self.capacity = decoder, capacity
        self.compile_s = 0.0
        self._fusible = self.setting.fusible and decoder.device.type == "cpu"
        decoder.reserve(decoder.config.max_context_len)
        self._stores = make_stores(decoder, capacity, self.setting.stacked)
        self._token = torch.ones(1, 1, dtype=torch.int64, device=decoder.device)
        self._call: Callable | None = None

    def __call__(self, position: int) -> torch.Tensor:
        """[1, V] logits; the first call compiles."""
        views = self._stores
        if self.setting.grows:
            views = [[store.narrow(2, 0, position + 1) for store in part] for part in views]
        place = torch.tensor([[position]], device=self.decoder.device)
        freezing = torch._inductor.config.freezing
        began = time.perf_counter()
        is_new = self._call is None
        try:
            torch._inductor.config.freezing = (
                self.setting.freezes and self.decoder.device.type == "cpu"
            )
            with torch.no_grad():
                logits = self._compiled()(self.decoder, self._token, place, *views, self._fusible)
        finally:
            torch._inductor.config.freezing = freezing
        if is_new and not self.setting.eager:
            self.compile_s = time.perf_counter() - began
        return logits

    def _compiled(self) -> Callable:
        if self._call is None:
            self._call = own_code(decode_step)
            if not self.setting.eager:
                self._call = torch.compile(
                    self._call, fullgraph=True, dynamic=self.setting.grows, mode=self.setting.mode
                )
        return self._call


def trap_case(step: TrapStep, context_len: int, steps: int) -> Case:
    """A case of one setting; what compiling took is a metric of each sample."""

    def run() -> dict[str, float]:
        device, seconds = step.decoder.device, []
        for index in range(steps):
            synchronize(device)
            start = time.perf_counter()
            step(context_len + index)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        middle, fastest = statistics.median(seconds), min(seconds)
        return {"step_s": middle, "fastest_step_s": fastest, "compile_s": step.compile_s}

    config = step.decoder.config
    params = {
        "setting": step.setting.name, "what": step.setting.what, "model": config.name,
        "num_layers": config.num_layers, "context_len": context_len, "capacity": step.capacity,
        "batch_size": 1,
    }  # fmt: skip
    return Case(run, params)


@torch.no_grad()
def written_bytes(decoder: Decoder, capacity: int, stacked: bool) -> int:
    """Bytes that a step's cache writes come to once they are functional: before any compiler acts.

    A compiler first turns each write into an operation that returns a new tensor. Whether it can
    write in place after all is decided later; with one tensor for all layers it did not.
    """
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    keys, values = make_stores(decoder, capacity, stacked)
    place = torch.tensor([[capacity - 1]], device=decoder.device)
    token = torch.ones_like(place)
    torch._dynamo.reset()
    decoder.reserve(decoder.config.max_context_len)
    compiled = torch.compile(decode_step, backend=aot_autograd(fw_compiler=keep), dynamic=False)
    compiled(decoder, token, place, keys, values)
    torch._dynamo.reset()
    return sum(
        node.meta["val"].numel() * node.meta["val"].element_size()
        for graph in graphs
        for node in graph.graph.nodes
        if node.op == "call_function" and _name(node.target) in WRITES
    )


def _name(target) -> str:
    """`aten.scatter.src` -> `scatter`."""
    parts = str(target).split(".")
    return parts[1] if len(parts) > 1 else parts[0]
