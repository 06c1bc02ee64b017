"""What does starting an operator cost the host, and how many does a step start?

Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType

from inferlab.decoding.graphs import captured
from inferlab.errors import MeasurementError
from inferlab.hardware.probes import timed
from inferlab.stepprofile import profiled_events

TINY = 16  # numbers: nothing to compute, nothing to read
GRAPH_KERNELS = 500
REPEATS, SAMPLE_S = 5, 0.01


@dataclass(frozen=True, slots=True)
class LaunchCosts:
    """Seconds of one call that has next to nothing to do, by what is called.

    `view_s` only makes another view. `operator_s` is a whole operator that computes sixteen
    numbers: the unit of the launch-bound estimate. `product_s` is a matrix product with weights of
    that size. `graph_s` is from one kernel to the next where a CUDA graph starts them; None on a
    CPU.
    """

    view_s: float
    operator_s: float
    product_s: float
    graph_s: float | None = None


@dataclass(frozen=True, slots=True)
class StepCounts:
    """Outermost operators that PyTorch was asked for, and kernels that a GPU ran (0 on a CPU)."""

    operators: int
    kernels: int = 0


@functools.cache
def launch_costs(dtype: str, device: str) -> LaunchCosts:
    """What this machine pays for each kind of call; measured once in a process, under a second."""
    number = getattr(torch, dtype)
    x = torch.ones(1, TINY, dtype=number, device=device)
    weight = torch.ones(TINY, TINY, dtype=number, device=device)
    with torch.inference_mode():
        return LaunchCosts(
            view_s=_seconds(lambda: x.view(-1), device),
            operator_s=_seconds(x.neg, device),
            product_s=_seconds(lambda: F.linear(x, weight), device),
            graph_s=_graph_s(x, device) if torch.device(device).type == "cuda" else None,
        )


def count(work: Callable[[], Any], device: str = "cpu") -> StepCounts:
    """What one call of `work` starts, after one that is not counted."""
    events = profiled_events(work, device)
    operators = sum(
        event.device_type == DeviceType.CPU and _is_outermost(event) for event in events
    )
    kernels = sum(
        event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in events
    )
    if not operators and not kernels:
        raise MeasurementError("the profiler saw no operator: run the cell again")
    return StepCounts(operators, kernels)


def _is_outermost(event: Any) -> bool:
    """Whether an operator was called by the program or by compiled code, not by an operator."""
    if "::" not in event.name:
        return False
    caller = event.cpu_parent
    while caller is not None:
        if "::" in caller.name:
            return False
        caller = caller.cpu_parent
    return True


def _graph_s(x: torch.Tensor, device: str) -> float:
    def many() -> None:
        for _ in range(GRAPH_KERNELS):
            x.neg()

    return _seconds(captured(many, device), device) / GRAPH_KERNELS


def _seconds(work: Callable[[], Any], device: str) -> float:
    return statistics.median(timed(work, device, REPEATS, SAMPLE_S))
