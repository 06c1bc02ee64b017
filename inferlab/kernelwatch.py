"""Which operators does a piece of PyTorch code really start, and what do they read and write?

What `kernelcost` counts from shapes is compared with this: the tensors that PyTorch's dispatcher
sees, views left out. A broadcast tensor counts with the bytes it has, not with those it stands for.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inferlab.kernelcost import KernelCost, Operator

NOT_KERNELS = ("empty", "_unsafe_view", "_to_copy_view", "lift_fresh", "detach", "alias")


class _Watch(TorchDispatchMode):
    """Notes every operator that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and not name.startswith(NOT_KERNELS):
            self.operators.append(_operator(name, args, result))
        return result


def watched(function: Callable[..., Any], **inputs: Any) -> KernelCost:
    """The operators that `function(**inputs)` starts, with the bytes of their tensors."""
    with torch.no_grad(), _Watch() as watch:
        function(**inputs)
    return KernelCost(tuple(watch.operators))


def _operator(name: str, args: tuple, result: Any) -> Operator:
    tensors = list(_tensors(args))
    if name.startswith("index_copy"):  # of the target only the places named are touched
        target, index, source = tensors
        return Operator(name.rstrip("_"), _bytes(index) + _bytes(source), _bytes(source))
    written = sum(_bytes(tensor) for tensor in _tensors(result))
    return Operator(name.removeprefix("_to_copy") or "to", sum(map(_bytes, tensors)), written)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of the distinct numbers: a dimension of stride 0 repeats one."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1
    for size, stride in sizes:
        count *= size if stride or not size else 1
    return count * tensor.element_size()
