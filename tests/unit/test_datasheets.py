"""Datasheet peaks are dense rates, and only for the exact device that they were published for."""

import pytest

from inferlab.errors import UserError
from inferlab.hardware.datasheets import DATASHEETS, datasheet_for, get_datasheet


def test_eight_bit_rates_are_twice_the_sixteen_bit_ones():
    for sheet in DATASHEETS.values():
        rates = sheet.flops_per_s
        ratio = 4 if sheet.name.endswith("4090") else 2  # its float16 rate accumulates in FP32
        assert rates["int8"] == pytest.approx(ratio * rates["float16"], rel=0.01)
        assert rates.get("bfloat16", rates["float16"]) == rates["float16"]


@pytest.mark.parametrize(
    ("reported", "key"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_a_driver_name_finds_its_datasheet(reported, key):
    assert datasheet_for(reported) is get_datasheet(key)


@pytest.mark.parametrize(
    "other",
    ["NVIDIA H200 NVL", "NVIDIA H100 PCIe", "NVIDIA A100-PCIE-40GB", "NVIDIA L40S",
     "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", ""],
)  # fmt: skip
def test_a_variant_is_another_device(other):
    assert datasheet_for(other) is None


def test_unknown_names_say_what_exists():
    with pytest.raises(UserError, match="choose from h200"):
        get_datasheet("h300")
