"""Which operators does a decode step spend its time in, and how many of them are there?

Shares from PyTorch's profiler, which adds its own cost to every operator: they say where a step
goes, its length is measured without it.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from inferlab.errors import MeasurementError

# Words in an operator's name, looked up in this order; what matches none is `other`.
GROUPS = {
    "attention": ("scaled_dot_product",),
    "products": ("linear", "mm", "matmul", "multiply"),
    "norms": ("rms_norm",),
}


def group_of(name: str) -> str:
    """Part of a step that the operator called `name` belongs to: a key of GROUPS, or other."""
    for group, words in GROUPS.items():
        if any(word in name for word in words):
            return group
    return "other"


def profiled_events(work: Callable[[], Any], device: torch.device | str = "cpu") -> list[Any]:
    """What PyTorch's profiler saw of one call of `work`, after one that it did not see."""
    from torch.profiler import ProfilerActivity, profile

    # Else each profile leaves two lines with a time in the outputs of a notebook.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    on_gpu = torch.device(device).type == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    work()
    with profile(activities=kinds) as found:
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    return list(found.events())


def operator_shares(
    work: Callable[[], Any], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Shares of `work`'s operator time by group, and its number of operator calls.

    Outermost operators only: an operator's time includes those that it calls. On a GPU it is the
    time of its kernels. Raises MeasurementError when the profiler saw nothing.
    """
    on_gpu = torch.device(device).type == "cuda"
    spent = dict.fromkeys((*GROUPS, "other"), 0.0)
    calls = 0
    for event in profiled_events(work, device):
        if event.cpu_parent is None and "::" in event.name:
            spent[group_of(event.name)] += (
                event.device_time_total if on_gpu else event.cpu_time_total
            )
            calls += 1
    total = sum(spent.values())
    if not total:
        raise MeasurementError("the profiler saw no operator: run the cell again")
    shares = {f"{group}_share_ratio": value / total for group, value in spent.items()}
    return {**shares, "operators_count": calls}
