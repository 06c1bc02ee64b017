"""Does each variant of an operation compute what float64 computes, on shapes that fit no tile?

`check_variants` judges what runs here. `check_interpreted` runs this package's Triton kernels on a
CPU, through Triton's interpreter, which has to be asked for before triton is imported: in a process
of its own (`python -m inferlab.kernelcheck`). It shows that they are right, never how fast.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess  # noqa: S404  this package's own module, in another process
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inferlab import kernelops, kernels
from inferlab.errors import MeasurementError
from inferlab.models.config import ModelConfig, get_config

# Roundings of its dtype that an output may be off by, at the size of the largest: each separate
# operator rounds once; in float32 the sums of many terms weigh more than that.
MOST_ROUNDINGS = {"bfloat16": 4.0, "float16": 4.0, "float32": 32.0}
INTERPRETED_SIZES = {"prefill_attention": 19, "decode_attention": 37, "linear": 3}  # else 5 rows
INTERPRETER_LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Checked:
    """How far a variant is from float64: the largest error in roundings of the largest output."""

    operation: str
    variant: str
    size: int
    dtype: str
    roundings: float

    @property
    def passed(self) -> bool:
        """Within what rounding explains; NaN is not."""
        return self.roundings <= MOST_ROUNDINGS[self.dtype]


def roundings(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Largest error of `found` against float64, in roundings of its dtype at the largest output.

    NaN when the shapes differ or a number is not finite.
    """
    worst = 0.0
    for got, wanted in zip(found, exact, strict=True):
        if got.shape != wanted.shape or not torch.isfinite(got).all():
            return float("nan")
        rounding = torch.finfo(got.dtype).eps / 2 * float(wanted.abs().max())
        worst = max(worst, float((got.double() - wanted).abs().max()) / (rounding or 1.0))
    return worst


def check_variant(
    operation: str, variant: str, size: int, batch_size: int, inputs: kernelops.Inputs,
    work: Callable[[], Any],
) -> Checked:  # fmt: skip
    """Run `work`, a variant on `inputs`, and compare all that it computed with float64."""
    exact = kernelops.reference(operation, inputs)
    with torch.inference_mode():
        found = kernelops.outputs(work(), inputs)
    dtype = str(found[0].dtype).removeprefix("torch.")
    return Checked(operation, variant, size * batch_size, dtype, roundings(found, exact))


def check_interpreted(model: str = "smollm2-135m") -> list[Checked]:
    """Every Triton kernel on a tiny awkward shape in Triton's interpreter, against float64.

    Empty where triton is not installed: one line on stderr says so. MeasurementError when the
    process that runs them fails.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    try:
        answer = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "inferlab.kernelcheck", model],
            env=environment, capture_output=True, text=True, check=False,
            timeout=INTERPRETER_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MeasurementError(
            f"Triton's interpreter took longer than {INTERPRETER_LIMIT_S} s: try on an idle machine"
        ) from None
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise MeasurementError(f"the kernels failed in Triton's interpreter: {last[:200]}")
    found = json.loads(answer.stdout)
    if why := found.get("why_not"):
        print(f"note: the kernels are not checked here: {why}", file=sys.stderr)
    return [Checked(**row) for row in found["checked"]]


def tiny(config: ModelConfig) -> ModelConfig:
    """`config` with so few channels that the interpreter is quick, none a power of two but D."""
    return dataclasses.replace(
        config, name=f"{config.name}-tiny", hidden_size=60, intermediate_size=44, num_q_heads=6,
        num_kv_heads=2, head_dim=16, source=None,
    )  # fmt: skip


def _check_all_interpreted(model: str) -> dict[str, Any]:
    """What `check_interpreted` reads: the reason why nothing ran, or one row a kernel."""
    if why := kernels.why_unavailable("cpu"):
        return {"why_not": why, "checked": []}
    config = tiny(get_config(model))
    rows = []
    for operation in kernelops.CUDA_VARIANTS:
        size = INTERPRETED_SIZES.get(operation, 5)
        inputs = kernelops.make_inputs(operation, config, torch.float32, "cpu", size)
        function = kernelops.function_of(operation, "triton")
        checked = check_variant(
            operation, "triton", size, 1, inputs, lambda f=function, i=inputs: f(**i)
        )
        rows.append(dataclasses.asdict(checked))
    return {"why_not": None, "checked": rows}


if __name__ == "__main__":
    print(json.dumps(_check_all_interpreted(sys.argv[1])))
