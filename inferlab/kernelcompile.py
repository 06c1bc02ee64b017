"""What does `torch.compile` make of one operation, and what if there is nothing to compile with?

One size varies (rows of a step, positions) and is a symbol in the compiled code; widths and heads
are constants. With `dynamic=True` they would all be symbols: lab 26 shows what that costs. Where
compiling fails, for want of a compiler or otherwise, one line says so and the rows are left out.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from inferlab.decoding.compiled import own_code
from inferlab.kvcache.view import StoreView
from inferlab.timing import is_out_of_memory


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled function, what its first call took, and the loops it was turned into (CPU)."""

    function: Callable[..., Any]
    compile_s: float
    loops: int
    vector_loops: int


class Compiler:
    """Compiles functions until one fails; from then on it knows why and tries no more."""

    def __init__(self) -> None:
        self.why_not: str | None = None

    def __call__(
        self, function: Callable[..., Any], inputs: Mapping[str, Any], size: int | None
    ) -> Compiled | None:
        """`function` compiled for inputs like these; None where that fails.

        Dimensions of `size` vary, all others stay as they are; None: every dimension varies. The
        first failure is said in one line on stderr. A size of 1 is compiled apart when it comes.
        """
        if self.why_not:
            return None
        counts = _loop_counts()
        start = time.perf_counter()
        try:
            everything = True if size is None else None  # None: what is marked
            compiled = torch.compile(own_code(function), dynamic=everything, fullgraph=True)
            with torch.inference_mode():
                _mark(inputs.values(), size)
                compiled(**inputs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.why_not = f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
            print(
                f"note: torch.compile does not work here ({self.why_not}): the rows of compiled "
                "functions are left out; on a CPU it needs a C++ compiler such as g++",
                file=sys.stderr,
            )
            return None
        loops, vector_loops = (b - a for a, b in zip(counts, _loop_counts(), strict=True))
        return Compiled(compiled, time.perf_counter() - start, loops, vector_loops)


def _mark(values: Iterable[Any], size: int | None) -> None:
    """Say to the compiler which dimensions vary: those of `size`."""
    for value in values:
        if isinstance(value, StoreView):
            _mark((value.keys, value.values), size)
        elif isinstance(value, torch.Tensor):
            for dim, length in enumerate(value.shape):
                if length == size:
                    torch._dynamo.mark_dynamic(value, dim)


def _loop_counts() -> tuple[int, int]:
    """Kernels that Inductor has generated so far, and those of them with vector instructions."""
    from torch._inductor import metrics

    return metrics.generated_kernel_count, metrics.generated_cpp_vec_kernel_count
