"""What does a decode step take when a compiler has seen all of it?

`torch.compile` fuses what lies between the products. On a CPU Inductor's freezing also lays the
weights out for oneDNN, which a plain product does at each call. Three things cost all of that again
(lab 27 measures them): weights that we packed ourselves, which a compiler cannot see into; a cache
that is one tensor for all layers, copied whole at each write; shapes that grow with the text.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import sys
import time
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from inferlab.errors import UserError
from inferlab.kvcache import BucketedCache
from inferlab.kvcache.bucketed import BucketStep, FusibleStep, bucket_mask
from inferlab.models.decoder import Decoder
from inferlab.models.layers import Projection
from inferlab.models.placement import check_host_memory

Views = list[torch.Tensor]


# What compiled code checks at each step. The rest (every attribute of every module of every layer,
# most of a millisecond a step) changes for nobody who holds a step: a decoder whose weights are
# replaced needs a new one.
GUARDS = ("TENSOR_MATCH", "SHAPE_ENV", "GLOBAL_STATE")


class CannotCompile(Exception):
    """A step could not be compiled; the message is the cause, in one line."""


def decode_step(
    decoder: Decoder,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    keys: Views,
    values: Views,
    fusible: bool = False,
) -> torch.Tensor:
    """One token a sequence, [B, 1] each -> [B, V] logits, over one bucket: what is compiled.

    `keys` and `values` are a layer's stores [B, G, width, D], written at `positions`. `fusible`:
    attention in operations for the compiler to fuse, not in PyTorch's kernel.
    """
    step = (FusibleStep if fusible else BucketStep)(keys, values, positions[:, -1])
    mask = bucket_mask(step.slots, keys[0].shape[2], keys[0].dtype)
    return decoder(token_ids, step, positions, mask)


def eager_step(decoder: Decoder) -> Callable[..., torch.Tensor]:
    """`decode_step` over a bucketed cache, operation by operation: what a CUDA graph records."""

    def step(token_ids: torch.Tensor, positions: torch.Tensor, cache: BucketedCache):
        held = cache.step(cache.width)
        return decode_step(decoder, token_ids, positions, held.keys, held.values)

    return step


class CompiledStep:
    """`decode_step` through `torch.compile`, once for each batch size and for all buckets.

    The width of the bucket is a symbol in the compiled code, everything else a constant. On a CPU
    each batch size holds a packed copy of the weights beside the plain ones, which the prefill
    uses: `packed_bytes` (Inductor's freezing_discard_parameters would take those away). On CUDA
    nothing is frozen: kernels read the weights where they are. `options` are Inductor's.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_autotune: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.decoder = decoder
        self.compile_s = 0.0  # of all compilations together
        self.compilations = 0
        self.recompiles = 0  # beyond the first of a batch size
        decoder.reserve(decoder.config.max_context_len)  # compiled as a constant: it may not grow
        self._freezes = decoder.device.type == "cpu"
        # CUDA graphs, where there are any, are ours: Inductor's leave out steps that write inputs.
        name = "max-autotune-no-cudagraphs" if max_autotune else "default"
        self._options = {
            **torch._inductor.list_mode_options(name),
            "guard_filter_fn": _needed,
            "size_asserts": False,  # generated code would check its own intermediate results
            **(options or {}),
        }
        self._compiled: dict[int, Callable[..., torch.Tensor]] = {}
        self._worked: set[int] = set()
        self._modules: list[types.ModuleType] = []
        self._codes: list[types.CodeType] = []
        weakref.finalize(self, _forget, self._codes, self._modules).atexit = False
        self._cache: BucketedCache | None = None
        self._views: dict[int, BucketStep] = {}

    @property
    def packed_bytes(self) -> int:
        """Bytes of the second copy of the weights that one batch size needs; 0 on CUDA."""
        if not self._freezes:
            return 0
        return sum(
            module.weight.numel() * module.weight.element_size()
            for module in self.decoder.modules()
            if isinstance(module, Projection) and module.weight is not None
        )

    def more_bytes(self, batch_size: int) -> int:
        """Bytes that a first step with `batch_size` sequences will take beside the cache."""
        return 0 if batch_size in self._compiled else self.packed_bytes

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cache: BucketedCache
    ) -> torch.Tensor:
        """[B, 1] token ids and positions -> [B, V] logits; the cache is written, not advanced."""
        batch = token_ids.shape[0]
        if batch not in self._compiled:
            what = f"packing the weights of {self.decoder.config.name} for a compiled step"
            check_host_memory(self.packed_bytes, what, self.decoder.device)
            step = _step_of(self.decoder)
            self._codes.append(step.__code__)
            self._compiled[batch] = torch.compile(
                step, fullgraph=True, dynamic=False, options=self._options
            )
        counted, loaded = _graphs(), len(_loaded())
        start = time.perf_counter()
        freezing, plain = torch._inductor.config.freezing, torch.contiguous_format
        # One state and one kind of tensor whoever calls, since compiled code is guarded by them.
        with torch.inference_mode(False), torch.no_grad():
            held = self._held(cache)
            inputs = [token_ids.clone(memory_format=plain), positions.clone(memory_format=plain)]
            try:
                torch._inductor.config.freezing = self._freezes
                found = self._compiled[batch](*inputs, held.keys, held.values)
            except (UserError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if batch in self._worked:
                    raise
                del self._compiled[batch]
                raise CannotCompile(_first_line(error)) from error
            finally:
                torch._inductor.config.freezing = freezing
        self._worked.add(batch)
        if new := _graphs() - counted:
            self._modules += _loaded()[loaded:]
            self.compile_s += time.perf_counter() - start
            self.compilations += new
            self.recompiles = self.compilations - len(self._compiled)
        return found

    def release(self) -> None:
        """Let go of the cache; the compiled code stays."""
        self._views.clear()
        self._cache = None

    def _held(self, cache: BucketedCache) -> BucketStep:
        """The views of the current bucket, their width marked as one that varies."""
        if self._cache is not cache:
            self.release()
            self._cache = cache
        width = cache.width
        if width not in self._views:
            held = cache.step(width)
            for store in (*held.keys, *held.values):
                torch._dynamo.mark_dynamic(store, 2)
            self._views[width] = held
        return self._views[width]


def own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a code object of its own.

    What was compiled is kept by code object, found there by shapes and mode, and counted against
    the compiler's limit: two uses of one function would answer for each other.
    """
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__,
        function.__defaults__, function.__closure__,
    )  # fmt: skip


def _step_of(decoder: Decoder) -> Callable[..., torch.Tensor]:
    """`decode_step` of `decoder`, with code of its own."""
    fusible = decoder.device.type == "cpu"  # a GPU's attention kernel is worth its start

    def step(token_ids: torch.Tensor, positions: torch.Tensor, keys: Views, values: Views):
        return decode_step(decoder, token_ids, positions, keys, values, fusible)

    return own_code(step)


def _loaded() -> list[types.ModuleType]:
    """Modules that Inductor generated: a list that it keeps, and that grows."""
    from torch._inductor.codecache import PyCodeCache

    return PyCodeCache.modules


def _forget(codes: list[types.CodeType], modules: list[types.ModuleType]) -> None:
    """Let go of compiled code and generated modules: packed weights hang on both for ever."""
    for code in codes:
        torch._dynamo.reset_code(code)
    for module in modules:
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
    gone, loaded = {id(module) for module in modules}, _loaded()
    loaded[:] = [kept for kept in loaded if id(kept) not in gone]
    modules.clear()


def check_can_compile(decoder: Decoder) -> None:
    """UserError where the decoder's weights are hidden from a compiler."""
    for module in decoder.modules():
        if isinstance(module, Projection) and module._packed is not None:
            raise UserError(
                f"the weights of {decoder.config.name} are packed for oneDNN, which a compiler "
                "cannot see into: load the decoder with pack=False"
            )


def why_no_compiler() -> str | None:
    """Why nothing can be compiled here; None when it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler works here: install g++ or name one in CXX"
    return None


def _needed(guards: Sequence[Any]) -> list[bool]:
    """Which guards to keep: those of GUARDS, but for weights."""
    return [
        guard.guard_type in GUARDS and not isinstance(guard.value, torch.nn.Parameter)
        for guard in guards
    ]


def _graphs() -> int:
    """Graphs that this process has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _first_line(error: Exception) -> str:
    """The cause of a failed compilation in one line of at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
