"""What does the driver say about the first visible CUDA device? Read-only, each value guarded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_MEGAHERTZ = 1e6


def read_accelerator() -> dict[str, Any] | None:
    """Fields of `facts.Accelerator` for the first visible device; None when there is none.

    Uses NVML (package nvidia-ml-py); without it, the few facts that torch knows.
    """
    try:
        import pynvml
    except ImportError:
        return _from_torch()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return _from_torch()
    try:
        handle = _first_visible(pynvml)
        return _facts(pynvml, handle) if handle is not None else None
    except pynvml.NVMLError:
        return _from_torch()
    finally:
        pynvml.nvmlShutdown()


def _first_visible(nvml: Any) -> Any | None:
    """Handle of what torch calls cuda:0: CUDA_VISIBLE_DEVICES may renumber the devices."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return nvml.nvmlDeviceGetHandleByIndex(0) if nvml.nvmlDeviceGetCount() else None
    first = chosen.split(",")[0].strip()
    if first.isdigit() and int(first) < nvml.nvmlDeviceGetCount():
        return nvml.nvmlDeviceGetHandleByIndex(int(first))
    if first.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return None  # empty or -1: hidden on purpose


def _facts(nvml: Any, handle: Any) -> dict[str, Any]:
    def read(call: Callable[..., Any], *arguments: Any) -> Any:
        """The value, or None where the driver or a container does not give it."""
        try:
            return call(*arguments)
        except (nvml.NVMLError, AttributeError, UnicodeDecodeError):
            return None

    def clock(call: Callable[..., Any], which: int) -> float | None:
        value = read(call, handle, which)
        return None if value is None else value * _MEGAHERTZ

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    capability = read(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    cuda = read(nvml.nvmlSystemGetCudaDriverVersion_v2)
    power_mw = read(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    ecc = read(nvml.nvmlDeviceGetEccMode, handle)
    mig = read(nvml.nvmlDeviceGetMigMode, handle)
    processes = read(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return {
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "memory_bytes": int(memory.total),
        "compute_capability": ".".join(map(str, capability)) if capability else None,
        "driver": _text(read(nvml.nvmlSystemGetDriverVersion)),
        "cuda_driver": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        "sm_clock_hz": clock(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        "sm_clock_max_hz": clock(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        "memory_clock_hz": clock(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        "memory_clock_max_hz": clock(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_MEM),
        "power_limit_w": None if power_mw is None else power_mw / 1000,
        "temperature_c": read(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "ecc": None if ecc is None else bool(ecc[0]),
        "mig": None if mig is None else bool(mig[0]),
        "throttle_reasons": throttle_reasons(
            nvml, read(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        ),
        "other_processes": None
        if processes is None
        else sum(process.pid != os.getpid() for process in processes),
    }


def throttle_reasons(nvml: Any, mask: int | None) -> list[str] | None:
    """Names of what holds the clocks down, from NVML's bit mask; being idle is not a reason."""
    if mask is None:
        return None
    prefix, names = "nvmlClocksEventReason", []
    for attribute in sorted(dir(nvml)):
        bit = getattr(nvml, attribute)
        name = attribute.removeprefix(prefix)
        if name == attribute or not isinstance(bit, int) or name in ("GpuIdle", "None", "All"):
            continue
        if bit and mask & bit == bit:
            names.append(name)
    return names


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _from_torch() -> dict[str, Any] | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda_runtime": torch.version.cuda,
    }
