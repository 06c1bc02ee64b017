"""Which models, batch sizes and lengths fit this machine?

A lab asks for the profile and never for the device: `tiny` runs on a laptop CPU, the others by
GPU memory. `INFERLAB_PROFILE=tiny` overrides (the tests do, so that outputs agree anywhere).
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import warnings
from dataclasses import dataclass

from inferlab.errors import UserError


@dataclass(frozen=True, slots=True)
class Profile:
    """What a lab sweeps on this class of machine."""

    name: str
    device: str  # cpu | cuda
    dtype: str
    real_model: str  # real weights: the only one that may carry a quality figure
    speed_models: tuple[str, ...]  # shapes to time; weights may be random
    batch_sizes: tuple[int, ...]
    prompt_lens: tuple[int, ...]  # with output_len, within what every model was trained for
    context_lens: tuple[int, ...]
    output_len: int
    lab_budget_s: float  # a lab ends within this on the machine
    # Where attention outweighs the rest; within what the last of speed_models was trained for.
    long_context_lens: tuple[int, ...] = ()


PROFILES = {
    "tiny": Profile(
        name="tiny",
        device="cpu",
        dtype="bfloat16",
        real_model="smollm2-135m",
        speed_models=("smollm2-135m",),
        batch_sizes=(1, 2, 4, 8),
        prompt_lens=(32, 128, 512),
        context_lens=(64, 256, 1024),
        output_len=16,
        lab_budget_s=90.0,
        long_context_lens=(128, 512, 2048),
    ),
    "gpu16": Profile(
        name="gpu16",
        device="cuda",
        dtype="bfloat16",
        real_model="smollm2-135m",
        speed_models=("smollm2-135m", "llama-3.2-1b"),
        batch_sizes=(1, 4, 16, 64),
        prompt_lens=(128, 512, 2048),
        context_lens=(128, 512, 2048),
        output_len=64,
        lab_budget_s=480.0,
        long_context_lens=(1024, 4096, 16_384),
    ),
    "gpu24": Profile(
        name="gpu24",
        device="cuda",
        dtype="bfloat16",
        real_model="smollm2-135m",
        speed_models=("smollm2-135m", "llama-3.1-8b"),
        batch_sizes=(1, 4, 16, 64),
        prompt_lens=(128, 512, 2048),
        context_lens=(128, 512, 2048, 4096),
        output_len=64,
        lab_budget_s=480.0,
        long_context_lens=(1024, 4096, 8192),
    ),
    "gpu80": Profile(
        name="gpu80",
        device="cuda",
        dtype="bfloat16",
        real_model="smollm2-135m",
        speed_models=("smollm2-135m", "llama-3.1-8b"),
        batch_sizes=(1, 4, 16, 64, 256),
        prompt_lens=(128, 512, 2048, 4096),
        context_lens=(128, 512, 2048, 4096),
        output_len=64,
        lab_budget_s=480.0,
        long_context_lens=(1024, 4096, 16_384, 32_768),
    ),
}


def profile_for_memory(memory_bytes: int) -> str:
    """Name of the GPU profile for a device with `memory_bytes`; under 14 GB it is `tiny`."""
    for name, least_bytes in (("gpu80", 70e9), ("gpu24", 22e9), ("gpu16", 14e9)):
        if memory_bytes >= least_bytes:
            return name
    return "tiny"


def unusable_cuda() -> str | None:
    """Why a torch that is built for CUDA finds no device; None when it does, or is built without.

    torch's own warning (a driver that is too old, for example) becomes part of the one line.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable or not torch.version.cuda:
        return None
    driver = "the driver answers nvidia-smi" if shutil.which("nvidia-smi") else "no driver seen"
    if caught:
        driver = " ".join(str(caught[0].message).split())[:160]
    return f"this torch is built for CUDA {torch.version.cuda}, but no device is usable ({driver})"


@functools.cache
def _detected() -> str:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return "tiny"
    if why := unusable_cuda():
        print(
            f"note: {why}: labs run on the CPU with the tiny profile (`inferlab doctor`)",
            file=sys.stderr,
        )
        return "tiny"
    import torch

    if not torch.cuda.is_available():
        return "tiny"
    return profile_for_memory(torch.cuda.get_device_properties(0).total_memory)


def current_profile() -> Profile:
    """The profile of this machine, or the one that INFERLAB_PROFILE names."""
    name = os.environ.get("INFERLAB_PROFILE") or _detected()
    if name not in PROFILES:
        raise UserError(
            f"unknown profile {name!r} in INFERLAB_PROFILE: use one of {', '.join(PROFILES)}"
        )
    profile = PROFILES[name]
    if profile.device == "cuda" and _detected() == "tiny":
        raise UserError(
            f"profile {name} needs a CUDA device and none is usable: unset INFERLAB_PROFILE, "
            "or run `inferlab doctor` to see why"
        )
    return profile
