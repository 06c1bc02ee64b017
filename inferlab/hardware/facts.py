"""On which machine was a number measured? Facts that matter to speed, and nothing private.

No host name, user, path or address is ever read into a `Machine`. What cannot be read is None:
a container often hides clocks, caches or the governor.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from inferlab.errors import UserError

PACKAGES = (
    "inferlab", "torch", "transformers", "triton", "numpy", "safetensors",
    "onnxruntime-gpu", "torchao",
)  # fmt: skip
ISA_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip

_CPU = Path("/sys/devices/system/cpu/cpu0")

Name = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Slug = Annotated[str, StringConstraints(max_length=80, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


class Facts(BaseModel):
    """Strict base: unknown keys and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cpu(Facts):
    """The host processor, as far as this process may use it."""

    model: Name
    cores: Count  # usable: the affinity mask and the control group's quota applied
    isa: list[Name] = []
    l1d_bytes: Count | None = None
    l2_bytes: Count | None = None
    l3_bytes: Count | None = None
    memory_bytes: Count | None = None  # usable: the smaller of installed and the group's limit
    governor: Name | None = None


class Accelerator(Facts):
    """One CUDA device."""

    name: Name
    memory_bytes: Count
    compute_capability: Name | None = None
    driver: Name | None = None
    cuda_driver: Name | None = None  # newest CUDA that the driver supports
    cuda_runtime: Name | None = None  # the CUDA that torch was built for
    sm_clock_hz: Amount | None = None
    sm_clock_max_hz: Amount | None = None
    memory_clock_hz: Amount | None = None
    memory_clock_max_hz: Amount | None = None
    power_limit_w: Amount | None = None
    temperature_c: float | None = None
    ecc: bool | None = None
    mig: bool | None = None
    throttle_reasons: list[Name] | None = None
    other_processes: Count | None = None  # on the device, this one not counted


class Machine(Facts):
    """What ran the cases of a record."""

    kind: Literal["cpu", "cuda"]
    cpu: Cpu
    accelerator: Accelerator | None = None
    os: Name
    kernel: Name
    python: Name
    packages: dict[Name, Name] = {}
    other_load: Amount | None = None  # load average over one minute, before the run began

    @property
    def title(self) -> str:
        """The device as a caption names it: "NVIDIA H200" or "AMD EPYC, 2 cores"."""
        if self.accelerator:
            return self.accelerator.name
        return f"{self.cpu.model}, {self.cpu.cores} core{'s' if self.cpu.cores != 1 else ''}"


def describe_machine(device: str = "cpu") -> Machine:
    """Facts of this machine as the host of `device`: "cpu" or "cuda" (the first visible one).

    torch is not imported, unless NVML is missing on a CUDA box. Raises UserError when `device` is
    "cuda" and none is visible.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: use cpu or cuda")
    packages = _package_versions()
    return Machine(
        kind=device,
        cpu=_cpu(),
        accelerator=_accelerator(packages) if device == "cuda" else None,
        os=_os_name(),
        kernel=_kernel_version(),
        python=platform.python_version(),
        packages=packages,
        other_load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def device_slug(machine: Machine) -> str:
    """Folder name of the machine's records: `nvidia-h200`, `cpu-amd-epyc-2c`."""
    if machine.accelerator:
        name = machine.accelerator.name + ("-mig" if machine.accelerator.mig else "")
        return _slug(name)[:80].rstrip("-") or "gpu"
    model = re.sub(r"\((r|tm|c)\)|@.*|\bCPU\b|\b\d+-Core\b|\bProcessor\b", " ", machine.cpu.model,
                   flags=re.IGNORECASE)  # fmt: skip
    return f"cpu-{_slug(model)[:60].strip('-') or 'unknown'}-{machine.cpu.cores}c"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "inferlab" not in versions:
        import inferlab

        versions["inferlab"] = inferlab.__version__
    return versions


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _os_name() -> str:
    for line in (_read(Path("/etc/os-release")) or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _kernel_version() -> str:
    # Only the number: the local part that follows it can name a site or a machine.
    match = re.match(r"\d+(\.\d+)*", platform.release())
    return f"{platform.system()} {match[0] if match else 'unknown'}"


def _cpu() -> Cpu:
    import psutil

    fields: dict[str, str] = {}
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    caches = _cache_bytes()
    memory = psutil.virtual_memory().total
    limit = _cgroup_number("memory.max", "memory/memory.limit_in_bytes")
    return Cpu(
        model=fields.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        isa=[flag for flag in ISA_FLAGS if flag in flags],
        l1d_bytes=caches.get(1),
        l2_bytes=caches.get(2),
        l3_bytes=caches.get(3),
        memory_bytes=min(memory, limit) if limit else memory,
        governor=_read(_CPU / "cpufreq" / "scaling_governor"),
    )


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, and the control group's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cores = allowed or os.cpu_count() or 1
    quota = None
    text = _read(Path("/sys/fs/cgroup/cpu.max"))
    if text and not text.startswith("max"):
        limit, period = (float(part) for part in text.split()[:2])
        quota = limit / period
    elif text is None:
        limit = _cgroup_number(None, "cpu/cpu.cfs_quota_us")
        period = _cgroup_number(None, "cpu/cpu.cfs_period_us")
        quota = limit / period if limit and period else None
    # A quota of 1.5 cores still lets two threads run.
    return min(cores, max(1, -int(-quota // 1))) if quota else cores


def _cgroup_number(v2: str | None, v1: str) -> int | None:
    for name in filter(None, (v2, v1)):
        text = _read(Path("/sys/fs/cgroup") / name)
        if text and text.isdigit() and int(text) < 2**60:  # version 1 spells "no limit" as 2^63
            return int(text)
    return None


def _cache_bytes() -> dict[int, int]:
    """Cache level -> bytes of one instance, as the first core sees it."""
    found: dict[int, int] = {}
    for folder in sorted((_CPU / "cache").glob("index*")):
        level, kind, size = (_read(folder / name) for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG]?)", size or "")
        if level and level.isdigit() and match and kind != "Instruction":
            scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]]
            found[int(level)] = int(match[1]) * scale
    return found


def _accelerator(packages: dict[str, str]) -> Accelerator:
    from inferlab.hardware.nvml import read_accelerator

    runtime = re.search(r"\+cu(\d+)(\d)$", packages.get("torch", ""))
    cuda_runtime = f"{runtime[1]}.{runtime[2]}" if runtime else None
    if cuda_runtime is None and (torch := sys.modules.get("torch")):
        cuda_runtime = torch.version.cuda  # the package index's wheel has no "+cu" in its version
    facts = read_accelerator()
    if facts is None:
        raise UserError(
            "no CUDA device is visible: check `nvidia-smi` and CUDA_VISIBLE_DEVICES, "
            "or use the CPU (INFERLAB_PROFILE=tiny)"
        )
    return Accelerator(**{"cuda_runtime": cuda_runtime, **facts})
