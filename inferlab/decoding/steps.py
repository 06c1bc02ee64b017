"""In which ways can one and the same decode step be started, and what does each need?

eager            operation by operation, as PyTorch does
compile          `torch.compile`; on a GPU the compiled step is then replayed from CUDA graphs of
                 ours (PyTorch's own, mode "reduce-overhead", leave out a step that writes its
                 inputs, as one that fills a cache does)
max-autotune     the same with Inductor's search over products
graph            eager, replayed from CUDA graphs
kernels          our fused Triton kernels (`models.fused`)
kernels-graph    those, replayed from CUDA graphs
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
Source: PyTorch's documentation of torch.compile and of CUDAGraph Trees.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from inferlab.decoding.compiled import (
    CannotCompile,
    CompiledStep,
    check_can_compile,
    eager_step,
    why_no_compiler,
)
from inferlab.decoding.graphs import GraphedStep, Step, Work, captured
from inferlab.errors import UserError
from inferlab.kernels import why_unavailable
from inferlab.kvcache import BucketedCache, KVCache
from inferlab.models.decoder import Decoder

STEPS = ("eager", "compile", "max-autotune", "graph", "kernels", "kernels-graph")
COMPILED = ("compile", "max-autotune")  # these need plain weights: pack=False
REPLAYED = ("graph", "kernels-graph")
KERNELS = ("kernels", "kernels-graph")


class Stepper:
    """A decoder whose steps of one token are taken in one of the ways of `STEPS`.

    Called as `Decoder.forward`; everything else about it is the decoder's. Prefills go to the
    decoder itself. `mode` is what is done, `asked` what was asked for: a step that cannot be
    compiled is taken eagerly, after one line on stderr. Modes other than eager need the bucketed
    cache, so `new_cache("static", ...)` makes one; logits may be overwritten by the next step.
    """

    def __init__(self, decoder: Decoder, mode: str, step: Step | None) -> None:
        self.decoder = decoder
        self.asked = self.mode = mode
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    @property
    def cache_kind(self) -> str:
        """The cache that these steps are made for."""
        return "static" if self._step is None else "bucketed"

    @property
    def compile_s(self) -> float:
        """Seconds that compilations took so far, the steps that waited for them included."""
        compiled = self._compiled()
        return compiled.compile_s if compiled else 0.0

    @property
    def recompiles(self) -> int:
        """Compilations beyond the first of each batch size: none, if shapes are as promised."""
        compiled = self._compiled()
        return compiled.recompiles if compiled else 0

    def more_bytes(self, batch_size: int) -> int:
        """Bytes of host memory that the first step of `batch_size` will take beside the cache."""
        compiled = self._compiled()
        return compiled.more_bytes(batch_size) if compiled else 0

    def __call__(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        all_positions: bool = False,
    ) -> torch.Tensor:
        """As `Decoder.forward`."""
        if self._step is None:
            return self.decoder(token_ids, cache, positions, mask, all_positions)
        if not isinstance(cache, BucketedCache):
            raise UserError(
                f"step {self.mode} needs the bucketed cache, not {type(cache).__name__}: "
                "choose cache='bucketed', or step='eager'"
            )
        if token_ids.shape[1] > 1 or all_positions or not cache.length:
            return self.decoder(token_ids, cache, positions, mask, all_positions)
        cache.shape.check_room(cache.length + 1, "bucketed")
        self.decoder.reserve(cache.length + 1)  # refuses what the model was not made for
        logits = self._take(token_ids, positions.expand(token_ids.shape), cache)
        cache.advance(1)
        return logits

    def new_cache(self, kind: str, batch_size: int, capacity: int) -> KVCache:
        """An empty cache; the static one of a step that needs fixed shapes is the bucketed one."""
        kind = self.cache_kind if kind == "static" else kind
        return self.decoder.new_cache(kind, batch_size, capacity)

    def release(self) -> None:
        """Let go of CUDA graphs and of the cache; compiled code stays."""
        for part in self._parts():
            part.release()

    def _take(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cache: BucketedCache
    ) -> torch.Tensor:
        """The step; where it cannot be compiled, the eager one from here on."""
        try:
            return self._step(token_ids, positions, cache)
        except CannotCompile as error:
            self._fall_back(str(error))
        return self._step(token_ids, positions, cache)

    def _fall_back(self, why: str) -> None:
        sys.stderr.write(f"step {self.mode} is not possible, steps are taken eagerly: {why}\n")
        self.mode = "eager"
        self._step = eager_step(self.decoder)  # the cache is a bucketed one already

    def _parts(self) -> list[Any]:
        """What keeps something between steps: graphs, compiled code."""
        found, part = [], self._step
        while part is not None:
            found += [part] if hasattr(part, "release") else []
            part = getattr(part, "step", None)
        return found

    def _compiled(self) -> CompiledStep | None:
        return next((part for part in self._parts() if isinstance(part, CompiledStep)), None)


def make_stepper(
    decoder: Decoder,
    mode: str = "eager",
    capture: Callable[..., Work] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Stepper:
    """`decoder` with steps taken as `mode` of STEPS says. `capture` stands in for CUDA in tests,
    `options` are Inductor's, for compiled modes.

    UserError where the mode cannot run: graphs without CUDA, kernels without Triton, packed weights
    with a compiler. A missing compiler costs one line on stderr and the steps are eager.
    """
    check_step(mode, decoder.device, capture is not None)
    if mode == "eager":
        return Stepper(decoder, mode, None)
    capture = capture or (captured if decoder.device.type == "cuda" else None)
    if mode in COMPILED:
        check_can_compile(decoder)
        step = CompiledStep(decoder, mode == "max-autotune", options)
        stepper = Stepper(decoder, mode, GraphedStep(step, capture=capture) if capture else step)
        if why := why_no_compiler():
            stepper._fall_back(why)
        return stepper
    if mode == "graph":
        return Stepper(decoder, mode, GraphedStep(eager_step(decoder), capture=capture))
    step = _kernel_step(decoder)
    if mode == "kernels-graph":
        step = GraphedStep(step, one_for_all=True, capture=capture)
    return Stepper(decoder, mode, step)


def check_step(mode: str, device: torch.device | str, graphs: bool = False) -> None:
    """UserError where `mode` is none of STEPS or cannot run on `device`, before a model is loaded.

    `graphs`: they are there although this is no GPU.
    """
    if mode not in STEPS:
        raise UserError(f"unknown step {str(mode)[:40]!r}; known: {', '.join(STEPS)}")
    if mode in REPLAYED and torch.device(device).type != "cuda" and not graphs:
        raise UserError(f"step {mode} replays CUDA graphs, which a CPU has not: use compile")
    if mode in KERNELS and (why := why_unavailable(device)):
        raise UserError(f"step {mode} is not possible: {why}")


def _kernel_step(decoder: Decoder) -> Step:
    """A step through the fused kernels, which read no more of the cache than is stored."""
    from inferlab.models.fused import FusedDecoder

    fused = FusedDecoder(decoder)

    def step(token_ids: torch.Tensor, positions: torch.Tensor, cache: BucketedCache):
        cache.place(positions)
        return fused.step(token_ids, cache, positions)

    return step
