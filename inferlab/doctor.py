"""What can this machine run? Packages, device, memory, measured ceilings, model.

Each finding says what to do about it; only what stops the labs is a failure.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inferlab.errors import UserError

NEEDED = ("torch", "transformers", "safetensors", "numpy", "pandas", "pyarrow", "pydantic")
FOR_THE_BOOK = ("jupyter-book", "nbval", "nbclient")
# Other people's low-bit kernels: without them those cases are skipped.
PEERS = ("torchao", "onnxruntime-gpu", "onnxruntime-genai-cuda", "onnx", "onnx-ir", "onnxscript")
FOR_SERVING = ("fastapi", "uvicorn", "httptools", "prometheus-client")
DISK_BYTES = 3e9  # the model and its ONNX exports, records and the built book


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the machine; `fix` says what to do when it is not `ok`."""

    name: str
    state: str  # ok | warn | fail
    detail: str
    fix: str = ""


def examine(probe: bool = True) -> Iterator[Finding]:
    """Findings one by one, quick ones first; `probe` also measures bandwidth and FLOP/s."""
    yield from _python()
    yield from _packages()
    yield _cuda()
    yield from _onnxruntime()
    yield _memory()
    yield _disk()
    yield _model()
    if probe and importlib.util.find_spec("torch"):
        yield from _ceilings()
    yield _guarded("profile", _profile)


def to_dict(findings: list[Finding]) -> dict[str, Any]:
    """JSON-ready report: `ready` is false when a finding stops the labs."""
    return {
        "ready": all(f.state != "fail" for f in findings),
        "findings": [asdict(f) for f in findings],
    }


def _guarded(name: str, work: Callable[[], Finding]) -> Finding:
    try:
        return work()
    except UserError as error:
        return Finding(name, "fail", str(error), "see the line above")


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding(
        "python", "ok" if good else "fail", version, "" if good else "install Python 3.11 or newer"
    )


def _packages() -> Iterator[Finding]:
    for names, state, fix in (
        (NEEDED, "fail", "`make book` installs it; on a box without internet `make gpu-install`"),
        (FOR_THE_BOOK, "warn", "needed to build and test the book: `make book`"),
        (FOR_SERVING, "warn", "`inferlab serve` and `load`: `pip install -r requirements.txt`"),
        (PEERS, "warn", "peers of chapter 10: `pip install -r requirements.txt`"),
    ):
        for name in names:
            try:
                yield Finding(name, "ok", importlib.metadata.version(name))
            except importlib.metadata.PackageNotFoundError:
                yield Finding(name, state, "not installed", fix)


def _cuda() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("cuda", "warn", "torch is not installed")
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of CUDA that is missing, for example
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding("cuda", "fail", f"torch cannot be imported: {reason}", "install it anew")
    from inferlab.profiles import unusable_cuda

    if why := unusable_cuda():
        return Finding(
            "cuda",
            "warn",
            why,
            "labs will run on the CPU with the tiny profile; check `nvidia-smi` and that the "
            "driver is new enough for that CUDA version",
        )
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        return Finding("cuda", "ok", f"{detail}, CUDA {torch.version.cuda}")
    return Finding("cuda", "ok", "no CUDA device: labs use the tiny profile on the CPU")


def _onnxruntime() -> Iterator[Finding]:
    """What sessions really get: the module's own list names what it was built for."""
    name = "onnxruntime providers"
    if not all(importlib.util.find_spec(module) for module in ("onnxruntime", "onnx", "torch")):
        return  # the packages' own findings say so
    from inferlab.backends.genai import PROVIDERS, check_one_onnxruntime, real_providers
    from inferlab.profiles import unusable_cuda

    try:
        check_one_onnxruntime()
        import torch

        gpu = not unusable_cuda() and torch.cuda.is_available()
        real = real_providers([PROVIDERS["cuda"]] if gpu else [])
    except (UserError, ImportError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        yield Finding(name, "warn", reason, "the onnx backend does not run until that is mended")
        return
    found = ", ".join(provider.removesuffix("ExecutionProvider") for provider in real)
    if gpu and PROVIDERS["cuda"] not in real:
        yield Finding(
            name,
            "warn",
            f"{found}; not CUDA, although torch has a device",
            "it needs the CUDA and cuDNN versions that it was built for (13 and 9): the onnx "
            "backend runs with --device cpu",
        )
        return
    yield Finding(name, "ok", found)


def _memory() -> Finding:
    import psutil

    available = psutil.virtual_memory().available
    state = "ok" if available > 3e9 else "warn"
    fix = "" if state == "ok" else "close other programs: the labs need about 3 GB"
    return Finding("memory", state, f"{available / 2**30:.1f} GiB available", fix)


def _disk() -> Finding:
    from inferlab.models.load import cache_root

    folder = cache_root()
    existing = next(p for p in [folder, *folder.parents] if os.path.lexists(p))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "is read-only" if existing.is_dir() else "is not a folder"
        return Finding(
            "disk", "warn", f"{existing} {what}: no model can be made in {folder}",
            "set INFERLAB_CACHE to a folder that you may write to",
        )  # fmt: skip
    free = shutil.disk_usage(existing).free
    state = "ok" if free > DISK_BYTES else "warn"
    fix = "" if state == "ok" else "free some space or set INFERLAB_CACHE to another disk"
    return Finding("disk", state, f"{free / 2**30:.1f} GiB free for the model cache", fix)


def _model() -> Finding:
    from inferlab.models.load import find_model

    name = "smollm2-135m"
    try:
        folder: Path | None = find_model(name)
    except (UserError, OSError) as error:
        return Finding("model", "fail", str(error), "`python -m inferlab.models.load` makes it")
    if folder is None:
        return Finding(
            "model", "warn", f"{name} is not in the cache yet", "`make book` prepares it"
        )
    return Finding("model", "ok", f"{name}, verified by sha256")


def _ceilings() -> Iterator[Finding]:
    from inferlab.calibration import quick_ceilings
    from inferlab.models.config import get_config
    from inferlab.profiles import current_profile
    from inferlab.units import format_rate

    try:
        profile = current_profile()
    except UserError:
        return
    for model in profile.speed_models:
        ceilings = quick_ceilings(get_config(model), profile.dtype, profile.device)
        read = format_rate(ceilings.read_bytes_per_s, "B/s")
        flops = format_rate(ceilings.flops_per_s, "FLOP/s")
        yield Finding(
            f"ceilings for {model}",
            "ok",
            f"reads {read} over its {profile.dtype} weights, multiplies at {flops}",
        )


def _profile() -> Finding:
    from inferlab.profiles import current_profile

    profile = current_profile()
    return Finding("profile", "ok", f"{profile.name}: {', '.join(profile.speed_models)}")
