"""How does a kernel begin before the one in front of it has ended?

Between two kernels of a stream a GPU drains, starts and fills again: some microseconds in which
memory is idle, as long as a small product takes. Hopper can start a kernel's programs when the last
ones of the kernel before are running ("programmatic dependent launch"; CUDA programming guide). A
program then does what depends on nobody, such as asking the cache for its first weights, and waits
for the kernel before only then. Every kernel started this way waits, in all its programs and before
its first load or store, so what a kernel sees is all that went before. CUDA graphs keep it.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import triton
import triton.language as tl

# "1" turns it on. Off unless asked for: until a GPU's records show that results stay the same and
# what it gains, kernels start one after the other.
SWITCH = "INFERLAB_OVERLAP"
LEAST_CAPABILITY = (9, 0)
LINE_BYTES = tl.constexpr(128)  # what a prefetch brings into the L2 cache


@triton.jit
def let_next_start(OVERLAP: tl.constexpr):
    """Say that the next kernel's programs may start where there is room."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Wait until all kernels before have ended and what they wrote can be read."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(places):
    """Bring the line of each pointer into the L2 cache; nothing is read into the program."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [places.to(tl.int64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


def launch_options(device: torch.device) -> dict[str, Any]:
    """Arguments of a launch: OVERLAP for the kernel and, where it is True, Triton's option."""
    if os.environ.get(SWITCH) != "1" or not _can_overlap(device):
        return {"OVERLAP": False}
    return {"OVERLAP": True, "launch_pdl": True}


@functools.cache
def _can_overlap(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
