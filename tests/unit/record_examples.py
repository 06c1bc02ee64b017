"""Small valid records that tests break in one place each."""

import datetime
import json
from pathlib import Path

import pandas as pd

from inferlab.hardware.facts import Accelerator, Cpu, Machine
from inferlab.records import CaseInfo, Manifest, ModelStamp, write_record

LAB = "90_example"
CPU_DEVICE = "cpu-example-2c"
NOON = datetime.datetime(2026, 1, 2, 12, 0, tzinfo=datetime.UTC)


def cpu_machine(**changes) -> Machine:
    fields = {
        "kind": "cpu",
        "cpu": Cpu(model="Example", cores=2),
        "os": "Linux",
        "kernel": "Linux 6.1",
        "python": "3.11.7",
        "packages": {"inferlab": "0.1.0", "torch": "2.13.0"},
    }
    return Machine(**{**fields, **changes})


def gpu_machine() -> Machine:
    device = Accelerator(name="NVIDIA H200", memory_bytes=141 * 10**9)
    return cpu_machine(kind="cuda", accelerator=device)


def manifest(**changes) -> Manifest:
    fields = {
        "lab": LAB,
        "device": CPU_DEVICE,
        "status": "complete",
        "code_hash": "0" * 64,
        "machine": cpu_machine(),
        "models": [ModelStamp(name="smollm2-135m", weights="real", sha256="a" * 64)],
        "started": NOON,
        "ended": NOON + datetime.timedelta(seconds=30),
        "cases": {
            "hf/bs=1": CaseInfo(
                params={"backend": "hf", "batch_size": 1}, predicted={"tpot_s": 0.02}, block="tpot"
            ),
            "torch/bs=1": CaseInfo(
                params={"backend": "torch", "batch_size": 1}, predicted={"tpot_s": 0.01},
                block="tpot",
            ),
            "torch/bs=1024": CaseInfo(
                params={"backend": "torch", "batch_size": 1024}, predicted={"tpot_s": 1.0},
                block="tpot",
            ),
        },
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def samples(rows=None) -> pd.DataFrame:
    if rows is None:
        rows = [
            ("hf/bs=1", "tpot_s", 0.5, -1, "warmup"),
            ("torch/bs=1", "tpot_s", 0.3, -1, "warmup"),
        ]
        for index in range(6):
            drift = 1 + index / 10
            rows.append(("hf/bs=1", "tpot_s", 0.04 * drift, index, "ok"))
            rows.append(("torch/bs=1", "tpot_s", 0.02 * drift, index, "ok"))
        rows.append(("torch/bs=1024", "none", float("nan"), 0, "oom"))
    return pd.DataFrame(rows, columns=["case", "metric", "value", "round", "status"])


def write_example(root: Path, **changes) -> Path:
    return write_record(manifest(**changes), samples(), root)


def edit_manifest(folder: Path, change) -> None:
    """Apply `change` to the parsed manifest of `folder`, as a careless or hostile hand would."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def write_lab(folder: Path, lab: str, *cells: str) -> Path:
    """A notebook `folder`/<lab>.ipynb with these code cells."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{lab}.ipynb"
    code = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    path.write_text(json.dumps({"cells": code, "nbformat": 4}))
    return path
