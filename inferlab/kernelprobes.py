"""How fast does this machine move numbers of any working set, and what does a launch cost it?

All that `kernelspeed` predicts with, measured on arrays and functions that no operation of the lab
uses: a sum, a copy, a product, an exponential, and calls on a few numbers. The fastest of several
samples: other programs can only slow them.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from inferlab import kernels
from inferlab.hardware.probes import matmul_rate, read_bandwidth, timed
from inferlab.kernelcompile import Compiler
from inferlab.kernelspeed import Rates
from inferlab.launchprobes import launch_costs

# Every cache level and beyond; the smallest set is large enough that its launch hardly counts.
WORKING_SETS = {
    "cpu": tuple(1 << bits for bits in range(18, 29, 2)),
    "cuda": tuple(1 << bits for bits in range(22, 33, 2)),
}
CACHED_NUMBERS = {"cpu": 1 << 17, "cuda": 1 << 26}  # in reach of the vector units
ODD_ROWS = 331  # of the products of the probe: no size of a lab
TINY, PRODUCTS = 17, 4
REPEATS, SAMPLE_S = 5, 0.003


@functools.cache
def measure_rates(dtype: str, device: str, head_dim: int, compiles: bool = True) -> Rates:
    """What this machine does with `dtype` on `device`; measured once in a process, in seconds.

    `head_dim`: the inner size of attention's products. Without `compiles`, or where that fails,
    `launch_s` has no entry for compiled functions.
    """
    kind = torch.device(device).type
    sets = WORKING_SETS[kind]
    numbers = CACHED_NUMBERS[kind]
    x, y = (torch.randn(numbers, device=device).to(getattr(torch, dtype)) for _ in range(2))
    product = max(matmul_rate(ODD_ROWS, ODD_ROWS, head_dim, dtype, device, repeats=REPEATS))
    with torch.inference_mode():
        return Rates(
            read=tuple((size, _read_rate(size, device)) for size in sets),
            copy=tuple((size, copy_bandwidth(size, device)) for size in sets),
            numbers_per_s=numbers / _seconds(lambda: x * y, device),
            exponentials_per_s=numbers / _seconds(x.exp, device),
            flops_per_s=product,
            launch_s=_launches(dtype, device, head_dim, compiles),
            overlaps=kind == "cuda",
        )


def copy_bandwidth(working_set_bytes: int, device: str) -> float:
    """Bytes/s, read and written together, of copying half the set into memory that is allocated
    anew each time, as operators do."""
    data = torch.ones(working_set_bytes // 8, dtype=torch.float32, device=device)
    return 8 * data.numel() / _seconds(data.clone, device)


def _read_rate(working_set_bytes: int, device: str) -> float:
    return max(read_bandwidth(working_set_bytes, device, repeats=REPEATS, min_sample_s=SAMPLE_S))


def _launches(dtype: str, device: str, head_dim: int, compiles: bool) -> dict[str, float]:
    """Seconds of a call on a few numbers, by how it is started."""
    x = torch.ones(3, TINY, dtype=getattr(torch, dtype), device=device)
    # A batch of products that are small, yet large enough for the library to take them over.
    left, right = (x.new_ones(PRODUCTS, *sides) for sides in ((TINY, head_dim), (head_dim, TINY)))
    costs = launch_costs(dtype, device)
    found = {"eager": costs.operator_s, "product": _seconds(lambda: left @ right, device)}
    if compiles:
        inputs = {"x": x, "y": x.clone(), "z": x.clone()}
        compiled = Compiler()(_three_inputs, inputs, size=3)
        if compiled is not None:
            found["compile"] = _seconds(lambda: compiled.function(**inputs), device)
    if costs.graph_s is not None:
        found["graph"] = costs.graph_s
        if kernels.why_unavailable(device) is None:
            from inferlab.kernels.swiglu import swiglu

            found["triton"] = _seconds(lambda: swiglu(x), device)
    return found


def _three_inputs(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return (x + y) * z


def _seconds(work: Callable[[], Any], device: str) -> float:
    return min(timed(work, device, REPEATS, SAMPLE_S))
