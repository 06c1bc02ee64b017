"""What does automatic mixed precision convert in a step, and what does that cost a decoder?

Autocast leaves the weights in float32 and converts the operands of each product when it is called.
It keeps the copy of a weight only while all of this holds: the weight requires a gradient, the
outermost autocast block is still open, and inference mode is off. A decoder that serves has frozen
weights in inference mode, so every step converts every weight again.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inferlab.backends.base import BackendRun
from inferlab.backends.torch import TorchBackend
from inferlab.decoding.sampling import GREEDY, Sampling
from inferlab.errors import UserError
from inferlab.models.decoder import Decoder
from inferlab.workload import Workload


class AutocastDecoder:
    """A float32 decoder whose steps run under autocast; everything else is the decoder's own.

    `keeps_casts`: steps run outside inference mode with weights that require a gradient, so that an
    autocast block around several steps converts each weight once. Nothing is differentiated.
    """

    def __init__(
        self, decoder: Decoder, dtype: torch.dtype = torch.bfloat16, keeps_casts: bool = False
    ) -> None:
        if decoder.dtype != torch.float32:
            raise UserError(f"autocast converts float32 weights, not {decoder.dtype}")
        self.decoder = decoder
        self.autocast_dtype = dtype
        self.keeps_casts = keeps_casts
        if keeps_casts:
            decoder.requires_grad_(True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step of the decoder, in mixed precision."""
        with self.step():
            return self.decoder(*args, **kwargs)

    @contextmanager
    def step(self):
        """The block in which one step runs."""
        with torch.inference_mode(not self.keeps_casts), torch.no_grad(), self.block():
            yield

    def block(self) -> torch.autocast:
        """An autocast block; the copies of weights live until the outermost one is left."""
        return torch.autocast(self.decoder.device.type, self.autocast_dtype)


class AutocastBackend(TorchBackend):
    """Our decoder in mixed precision; with `keeps_casts` one autocast block spans each batch."""

    def __init__(
        self,
        decoder: Decoder,
        dtype: torch.dtype = torch.bfloat16,
        keeps_casts: bool = False,
        cache: str = "static",
        sampling: Sampling = GREEDY,
        weights: str = "real",
    ) -> None:
        super().__init__(AutocastDecoder(decoder, dtype, keeps_casts), cache, sampling, weights)

    def run(self, workload: Workload) -> BackendRun:
        """Serve one static batch."""
        if not self.decoder.keeps_casts:
            return super().run(workload)
        with self.decoder.block():
            return super().run(workload)


class CastCounter(TorchDispatchMode):
    """Counts conversions between floating-point formats, their bytes, and what ran in which.

    `casts` and `cast_bytes` (bytes read) go by (from, to); `ran` by (operation, format of its
    result). Formats as torch writes them, without "torch.".
    """

    def __init__(self) -> None:
        super().__init__()
        self.casts: Counter[tuple[str, str]] = Counter()
        self.cast_bytes: Counter[tuple[str, str]] = Counter()
        self.ran: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run `func` and note what it was."""
        result = func(*args, **(kwargs or {}))
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            name = func.overloadpacket.__name__
            if name in ("to", "_to_copy") and first is not None and first.dtype != result.dtype:
                pair = (_short(first.dtype), _short(result.dtype))
                self.casts[pair] += 1
                self.cast_bytes[pair] += first.numel() * first.itemsize
            else:
                self.ran[name, _short(result.dtype)] += 1
        return result


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
