"""Which kernels are our own, and where can they run?

Products with weights of 4 and 8 bits, attention, and what lies between them in a decode step; in
Triton, with plain references beside (`reference`, `attention_reference`, `fused_reference`) that
need PyTorch alone. The other modules import triton and are imported when they are asked for.
Nothing is imported here.
Chapters: chapters/10_quantization.md, chapters/26_fused_kernels.md
Labs: labs/10_quantization.ipynb, labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re

LEAST_CAPABILITY = (8, 0)  # bfloat16 in the tensor cores
LEAST_TRITON = (3, 6)  # comes with torch 2.11


def why_unavailable(device: object) -> str | None:
    """Why these kernels cannot run on `device` ("cpu", "cuda", ...); None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: `make env` installs it, a torch with CUDA brings it along"
    version = importlib.import_module("triton").__version__
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST_TRITON:
        least = ".".join(map(str, LEAST_TRITON))
        return f"triton {version} is too old: install triton {least} or newer, with its torch"
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device is usable"
        if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
            return "a GPU of compute capability 8.0 or newer is needed, for bfloat16"
        return None
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton's kernels run on a GPU (on a CPU: slowly, under TRITON_INTERPRET=1)"
    return None
