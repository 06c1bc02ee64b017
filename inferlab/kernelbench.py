"""How long does each variant of a fused operation take by size, and at what share of the bandwidth?

On a CPU calls follow each other and small sets stay in the caches: nothing is flushed, and the rate
that a share refers to is the one at the case's own working set. On a GPU both are measured: calls
in a row, launches included (`time_s`), and the device alone, started from a CUDA graph after other
memory was read through the L2 (`device_s`), which is what the share refers to there.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inferlab import kernelcost, kernelops
from inferlab.decoding.graphs import captured
from inferlab.hardware.probes import synchronize
from inferlab.kernelcompile import Compiled, Compiler
from inferlab.kernelspeed import Rates
from inferlab.models.config import ModelConfig
from inferlab.recorder import Case
from inferlab.timing import Run

LEAST_SAMPLE_S = 0.004
MOST_CALLS = 2000
COMPILED_SIZE = 37  # of the example: like no width, number of heads or size of a lab
FLUSHED_TIMES = 5  # flushed calls a sample
FLUSH_L2_SIZES = 4  # bytes read to empty the L2, in sizes of it


@dataclass(frozen=True, slots=True)
class Bench:
    """One model's shapes, a dtype, a device, what it was measured to do, and what was compiled."""

    config: ModelConfig
    dtype: str
    device: str
    rates: Rates
    compiled: dict[str, Compiled]

    def variants(self, operation: str) -> list[str]:
        """Variants of `operation` that can run here."""
        found = kernelops.variants_of(operation, self.device)
        return [v for v in found if v != "compile" or operation in self.compiled]

    def cost(
        self, operation: str, variant: str, size: int, batch_size: int = 1
    ) -> kernelcost.KernelCost:
        """What the variant moves, computes and launches."""
        return kernelcost.cost(operation, variant, self.config, self.dtype, size, batch_size)

    def predict_s(self, operation: str, variant: str, size: int, batch_size: int = 1) -> float:
        """Expected seconds of one of many calls in a row."""
        return self.rates.predict_s(self.cost(operation, variant, size, batch_size))

    def work(self, operation: str, variant: str, inputs: kernelops.Inputs) -> Callable[[], Any]:
        """A call of the variant on `inputs`."""
        function = kernelops.function_of(operation, variant)
        if variant == "compile":
            function = self.compiled[operation].function
        return functools.partial(function, **inputs)

    def inputs(
        self, operation: str, size: int, batch_size: int = 1, seed: int = 0
    ) -> kernelops.Inputs:
        """Random inputs in this dtype and on this device."""
        dtype = getattr(torch, self.dtype)
        return kernelops.make_inputs(
            operation, self.config, dtype, self.device, size, batch_size, seed
        )


def compile_all(
    operations: Sequence[str], config: ModelConfig, dtype: str, device: str, compiler: Compiler,
    batch_size: int = 1,
) -> dict[str, Compiled]:  # fmt: skip
    """What `torch.compile` makes of each operation that has such a variant; empty if it cannot.

    `batch_size` is of the sequences in attention of one new token: a constant in its code.
    """
    found = {}
    for operation in operations:
        if "compile" not in kernelops.variants_of(operation, device):
            continue
        batch = batch_size if operation == "decode_attention" else 1
        inputs = kernelops.make_inputs(
            operation, config, getattr(torch, dtype), device, COMPILED_SIZE, batch
        )
        compiled = compiler(kernelops.function_of(operation, "compile"), inputs, COMPILED_SIZE)
        if compiled is not None:
            found[operation] = compiled
    return found


def operation_cases(
    bench: Bench, block: str, operation: str, sizes: Sequence[int], batch_size: int = 1
) -> dict[str, Case]:
    """One case for each variant and size of an operation, with its prediction and its counts."""
    cases = {}
    for size in sizes:
        made = made_once(bench, operation, size, batch_size)
        for variant in bench.variants(operation):
            key = f"{block}/{operation}/{variant}/{size}"
            cases[key] = operation_case(bench, operation, variant, size, batch_size, made)
    return cases


def probe_cases(rates: Rates, dtype: str) -> dict[str, Case]:
    """What predictions are made from, as cases: they were measured before any operation ran."""
    found: dict[str, dict[str, float]] = {}
    for size, rate in rates.read:
        found[f"probe/read/{size}"] = {"read_bytes_per_s": rate}
    for size, rate in rates.copy:
        found[f"probe/copy/{size}"] = {"copy_bytes_per_s": rate}
    for how, seconds in rates.launch_s.items():
        found[f"probe/launch/{how}"] = {"launch_s": seconds}
    found["probe/numbers"] = {"numbers_per_s": rates.numbers_per_s}
    found["probe/exponentials"] = {"exponentials_per_s": rates.exponentials_per_s}
    found["probe/product"] = {"flops_per_s": rates.flops_per_s}
    return {
        key: Case(dict(values).copy, {"phase": "probe", "dtype": dtype, "what": key.split("/")[1]})
        for key, values in found.items()
    }


def compile_cases(compiled: Mapping[str, Compiled]) -> dict[str, Case]:
    """What the first call of each compiled function took, and its loops with vector instructions
    (a CPU's): `compile_s` is short where the code was still on disk from an earlier run."""
    cases = {}
    for operation, found in compiled.items():
        values = {"compile_s": found.compile_s, "num_loops": float(found.loops),
                  "num_vector_loops": float(found.vector_loops)}  # fmt: skip
        cases[f"compile/{operation}"] = Case(values.copy, {"phase": "compile", "what": operation})
    return cases


def made_once(
    bench: Bench, operation: str, size: int, batch_size: int = 1
) -> Callable[[], kernelops.Inputs]:
    """Inputs that are made when a case first runs, and shared by the cases that get this."""
    return functools.cache(functools.partial(bench.inputs, operation, size, batch_size))


def operation_case(
    bench: Bench, operation: str, variant: str, size: int, batch_size: int,
    made: Callable[[], kernelops.Inputs],
) -> Case:  # fmt: skip
    """One variant at one size; `made` gives its inputs when it first runs."""
    rates, on_gpu = bench.rates, torch.device(bench.device).type == "cuda"
    cost = bench.cost(operation, variant, size, batch_size)
    least = bench.cost(operation, "triton", size, batch_size)
    predicted = {
        "time_s": rates.predict_s(cost),
        "launching_s": rates.launching_s(cost),
        "work_s": rates.work_s(cost),
        "moved_bytes": cost.bytes,
        "least_bytes": least.bytes,
    }
    if on_gpu:
        predicted["device_s"] = rates.predict_device_s(cost)
    return Case(
        timed_run(bench, lambda: bench.work(operation, variant, made()), least),
        {
            "operation": operation, "variant": variant, "size": size, "batch_size": batch_size,
            "model": bench.config.name, "dtype": bench.dtype, "launches": cost.launches,
            "flushed": on_gpu,
        },
        predicted,
    )  # fmt: skip


def form_cases(
    bench: Bench, what: str, forms: Mapping[str, Callable[..., Any]], inputs: kernelops.Inputs,
    size: int,
) -> dict[str, Case]:  # fmt: skip
    """Several ways to write or to compile one function `what`, on the same inputs; no prediction.

    `forms` are by the name of their variant, "eager" the one that others are compared with.
    """
    return {
        f"forms/{what}/{variant}/{size}": Case(
            timed_run(bench, lambda form=form: functools.partial(form, **inputs)),
            {
                "operation": what, "variant": variant, "size": size, "batch_size": 1,
                "model": bench.config.name, "dtype": bench.dtype,
                "flushed": torch.device(bench.device).type == "cuda",
            },
        )
        for variant, form in forms.items()
    }  # fmt: skip


def timed_run(
    bench: Bench, prepare: Callable[[], Callable[[], Any]],
    least: kernelcost.KernelCost | None = None,
) -> Run:  # fmt: skip
    """A callable that times what `prepare` gives: in a row, and on a GPU also alone, flushed.

    With `least`, the fewest operators that do the work, it also tells the share of the bandwidth.
    """
    on_gpu = torch.device(bench.device).type == "cuda"

    @functools.cache
    def ready() -> Callable[[], Any]:
        return prepare()

    @functools.cache
    def calls() -> int:
        return calls_of(ready(), bench.device)

    @functools.cache
    def alone() -> Callable[[], Any]:
        return captured(ready(), bench.device)

    def run() -> dict[str, float]:
        with torch.inference_mode():
            found = {"time_s": in_a_row_s(ready(), bench.device, calls())}
            if on_gpu:
                found["device_s"] = flushed_s(alone(), bench.device)
        if least is not None:
            seconds = found["device_s" if on_gpu else "time_s"]
            share = bench.rates.bandwidth_share(least, seconds, cold=on_gpu)
            found["bandwidth_share_ratio"] = share
        return found

    return run


def calls_of(work: Callable[[], Any], device: str) -> int:
    """Calls that fill a sample; the first two, which compile or allocate, are not counted."""
    work()
    once_s = in_a_row_s(work, device, 1)
    once_s = min(once_s, in_a_row_s(work, device, 1))
    return max(1, min(MOST_CALLS, round(LEAST_SAMPLE_S / max(once_s, 1e-7))))


def in_a_row_s(work: Callable[[], Any], device: str, calls: int) -> float:
    """Seconds of one of `calls` calls, launches included; waits for the device once, at the end."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def flushed_s(work: Callable[[], Any], device: str) -> float:
    """Median seconds of `work` on a CUDA device by its own clock, its L2 full of other memory.

    That memory is read, not written: what the L2 would still have to write back would be charged
    to `work`.
    """
    other = _flush_buffer(device)
    pairs = []
    for _ in range(FLUSHED_TIMES):
        other.sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        pairs.append((start, end))
    synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


@functools.cache
def _flush_buffer(device: str) -> torch.Tensor:
    size = torch.cuda.get_device_properties(device).L2_cache_size * FLUSH_L2_SIZES
    return torch.ones(size // 4, dtype=torch.float32, device=device)
