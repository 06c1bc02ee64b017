"""Does it fit, and is the device there? Asked before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import torch

from inferlab.errors import MeasurementError, UserError
from inferlab.models.cost import DTYPE_BYTES, dtype_bytes
from inferlab.profiles import unusable_cuda
from inferlab.units import format_bytes

DEVICES = ("cpu", "cuda")
HEADROOM_BYTES = 256 * 2**20  # left to the rest of the process and the machine


class BatchTooLarge(MeasurementError):
    """The host's memory cannot hold what was asked for; nothing was allocated."""


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype called `dtype`; a UserError that lists the dtypes when there is none."""
    dtype_bytes(dtype)
    return getattr(torch, dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch dtype as this package writes it ("bfloat16")."""
    return next(name for name in DTYPE_BYTES if getattr(torch, name) == dtype)


def torch_device(device: str) -> torch.device:
    """The device called `device` ("cpu", "cuda", "cuda:1"); a UserError when it is not there."""
    kind, _, index = str(device).partition(":")
    if kind not in DEVICES or (index and not index.isdecimal()):
        raise UserError(f"unknown device {str(device)[:40]!r}; known: {', '.join(DEVICES)}")
    if kind == "cuda":
        why = unusable_cuda()
        if why or not torch.cuda.is_available():
            why = why or "this torch was built without CUDA"
            raise UserError(f"device cuda was asked for, but {why}: choose --device cpu")
        count = torch.cuda.device_count()
        if index and int(index) >= count:
            raise UserError(f"device {device} was asked for, but there are only {count} GPUs")
        # On Hopper and newer, torch 2.11 and later prefer cuDNN's attention, which builds a plan
        # (tens of milliseconds) for every context length it has not seen: at each step of a first
        # answer. Flash attention takes any length at once.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(device)


def available_bytes() -> int:
    """Host memory that can still be had: the machine's, or the container's if that is less."""
    import psutil

    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        # Cached file pages count as used there, but give way.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(available, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such file, or the limit is "max"
        return available


def check_device_room(needed_bytes: float, what: str, device: str) -> None:
    """Raise UserError when `needed_bytes` may not fit a GPU; a CPU is asked when it loads."""
    if torch_device(device).type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed_bytes > free:
        raise UserError(f"no room on {device} for {what}")


def check_host_memory(needed_bytes: float, what: str, device: torch.device) -> None:
    """Raise BatchTooLarge when `needed_bytes` on a CPU would not fit; a GPU judges for itself.

    A CPU allocation beyond the memory does not fail: the system kills some process instead.
    """
    if device.type != "cpu":
        return
    available = available_bytes() - HEADROOM_BYTES
    if needed_bytes > available:
        raise BatchTooLarge(
            f"{what} needs {format_bytes(needed_bytes)} of memory and "
            f"{format_bytes(max(available, 0))} can be had: choose a smaller batch, "
            "a shorter context or a smaller model"
        )
