"""What does the maker promise? Peak rates as published: a ceiling to name beside the measured one.

Dense tensor-core rates (no sparsity), bytes with GB = 10^9. Chapter: chapters/02_roofline.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from inferlab.errors import UserError
from inferlab.units import GIGA, TERA


@dataclass(frozen=True, slots=True)
class Datasheet:
    """Published peaks of one accelerator; `pattern` matches the name that its driver reports."""

    name: str
    read_bytes_per_s: float
    memory_bytes: float
    flops_per_s: Mapping[str, float]  # dtype -> dense rate; float32 without the tensor cores
    source: str
    url: str
    pattern: str


def _rates(**tera: float) -> dict[str, float]:
    return {dtype: value * TERA for dtype, value in tera.items()}


_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_HOPPER = _rates(bfloat16=989.5, float16=989.5, float8_e4m3fn=1979, int8=1979, float32=67)

DATASHEETS: dict[str, Datasheet] = {
    "h200": Datasheet(
        "NVIDIA H200 SXM", 4.8 * TERA, 141 * GIGA, _HOPPER,
        "NVIDIA H200 product page; half of the rates that it gives with sparsity",
        _NVIDIA + "h200/", r"NVIDIA H200",
    ),
    "h100-sxm": Datasheet(
        "NVIDIA H100 SXM", 3.35 * TERA, 80 * GIGA, _HOPPER,
        "NVIDIA H100 product page; half of the rates that it gives with sparsity",
        _NVIDIA + "h100/", r"NVIDIA H100 80GB HBM3",
    ),
    "a100-80gb": Datasheet(
        "NVIDIA A100 80GB SXM", 2.039 * TERA, 80 * GIGA,
        _rates(bfloat16=312, float16=312, int8=624, float32=19.5),
        "NVIDIA A100 product page", _NVIDIA + "a100/", r"NVIDIA A100-SXM4-80GB",
    ),
    "l4": Datasheet(
        "NVIDIA L4", 0.3 * TERA, 24 * GIGA,
        _rates(bfloat16=121, float16=121, float8_e4m3fn=242.5, int8=242.5, float32=30.3),
        "NVIDIA L4 product page; half of the rates that it gives with sparsity",
        _NVIDIA + "l4/", r"NVIDIA L4",
    ),
    "t4": Datasheet(
        "NVIDIA T4", 0.32 * TERA, 16 * GIGA,
        _rates(float16=65, int8=130, float32=8.1),  # no bfloat16 in the tensor cores
        "NVIDIA T4 product page", _NVIDIA + "tesla-t4/", r"Tesla T4|NVIDIA T4",
    ),
    "rtx-4090": Datasheet(
        "NVIDIA GeForce RTX 4090", 1.008 * TERA, 24 * GIGA,
        _rates(bfloat16=165.2, float16=165.2, float8_e4m3fn=330.3, int8=660.6, float32=82.6),
        "NVIDIA Ada GPU architecture whitepaper; 16- and 8-bit floats with FP32 accumulation",
        "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
        r"NVIDIA GeForce RTX 4090",
    ),
}  # fmt: skip


def get_datasheet(key: str) -> Datasheet:
    """The datasheet called `key`; the error names what exists."""
    if key not in DATASHEETS:
        raise UserError(f"no datasheet {key!r}: choose from {', '.join(DATASHEETS)}")
    return DATASHEETS[key]


def datasheet_for(device_name: str) -> Datasheet | None:
    """Datasheet of the device that a driver calls `device_name`; None when it is another one.

    Variants differ (an H100 PCIe is no H100 SXM), so the whole name must match.
    """
    for sheet in DATASHEETS.values():
        if re.fullmatch(sheet.pattern, device_name):
            return sheet
    return None
