"""How fast can this machine read memory and multiply matrices?

Both ceilings are measured, never looked up: the datasheet's are in `datasheets`.
Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from inferlab.errors import UserError

if TYPE_CHECKING:
    import torch

PROBE_DTYPES = ("float32", "bfloat16", "float16")


def synchronize(device: str | torch.device) -> None:
    """Wait until `device` has finished its queue: without this a GPU clock reads launch time."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def timed(
    work: Callable[[], object], device: str, repeats: int, min_sample_s: float
) -> list[float]:
    """Seconds per call of `work`, `repeats` samples, each long enough for the clock."""
    work()
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    once_s = max(time.perf_counter() - start, 1e-7)
    calls = max(1, round(min_sample_s / once_s))
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        samples.append((time.perf_counter() - start) / calls)
    return samples


def read_bandwidth(
    working_set_bytes: int, device: str = "cpu", *, repeats: int = 5, min_sample_s: float = 0.01
) -> list[float]:
    """Bytes/s of a read-only pass over `working_set_bytes`, one value per repeat.

    A float32 sum: every byte is read once and nothing is written, as in a decode step. The
    passes follow each other, so a set that fits a cache is read from that cache.
    """
    import torch

    if working_set_bytes < 4096:
        raise UserError("a bandwidth probe needs a working set of at least 4096 bytes")
    data = torch.ones(working_set_bytes // 4, dtype=torch.float32, device=device)
    samples = timed(data.sum, device, repeats, min_sample_s)
    return [data.numel() * 4 / seconds for seconds in samples]


def matmul_rate(
    m: int,
    n: int,
    k: int,
    dtype: str = "bfloat16",
    device: str = "cpu",
    *,
    repeats: int = 5,
    min_sample_s: float = 0.01,
) -> list[float]:
    """FLOP/s of x[m, k] @ w[n, k].T in `dtype`, one value per repeat; 2mnk FLOPs a call.

    The operands are random: zeros draw less power and run faster on a GPU.
    """
    import torch

    if dtype not in PROBE_DTYPES:
        raise UserError(f"unknown dtype {dtype!r} for a matmul probe: use one of {PROBE_DTYPES}")
    torch_dtype: torch.dtype = getattr(torch, dtype)
    x = torch.randn(m, k, device=device).to(torch_dtype)  # [m, k]
    w = torch.randn(n, k, device=device).to(torch_dtype)  # [n, k]
    with torch.inference_mode():
        samples = timed(lambda: torch.nn.functional.linear(x, w), device, repeats, min_sample_s)
    return [2 * m * n * k / seconds for seconds in samples]


def working_sets(device: str, weight_bytes: int) -> list[int]:
    """Working-set sizes in bytes that show each cache level and reach past `weight_bytes`."""
    start, ceiling = (1 << 20, 1 << 28) if device == "cpu" else (1 << 22, 1 << 32)
    sizes = []
    size = start
    while size <= max(ceiling, weight_bytes):
        sizes.append(size)
        size *= 4
    return sorted({*sizes, weight_bytes})
