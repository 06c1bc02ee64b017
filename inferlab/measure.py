"""What does one configuration cost, by batch size? The work behind `inferlab measure`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inferlab import kernelfit
from inferlab.backends.base import Backend, load_backend
from inferlab.bench import Shape, generation_case, predict, quantized_weights, shaped_batch
from inferlab.decoding.steps import check_step
from inferlab.errors import UserError
from inferlab.fitting import fit_backend
from inferlab.hardware.facts import Machine, describe_machine
from inferlab.journal import disk_error
from inferlab.models.config import get_config
from inferlab.models.cost import check_format, dtype_bytes
from inferlab.models.placement import torch_device
from inferlab.profiles import current_profile
from inferlab.recorder import Case
from inferlab.roofline import Ceilings
from inferlab.stats import Estimate, median_interval
from inferlab.timing import StopRule, interleave
from inferlab.trace import Trace, TraceError, save_trace

BATCH_BACKENDS = ("hf", "torch", "engine")
QUANTIZING_BACKENDS = ("torch",)
STEPPING_BACKENDS = ("torch",)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    backends: tuple[str, ...]
    model: str
    dtype: str
    batch_sizes: tuple[int, ...]
    prompt_len: int
    output_len: int
    weights: str = "real"
    device: str = "auto"
    formats: tuple[str | None, ...] = (None,)  # weight formats; None: plain weights in `dtype`
    steps: tuple[str, ...] = ("eager",)  # how decode steps are taken, see decoding.steps

    def __post_init__(self) -> None:
        for name in self.backends:
            if name not in BATCH_BACKENDS:
                raise UserError(f"unknown backend {name!r}: use one of {', '.join(BATCH_BACKENDS)}")
            if name not in QUANTIZING_BACKENDS and any(self.formats):
                raise UserError(f"backend {name} does not quantize weights: use --backend torch")
            if name not in STEPPING_BACKENDS and self.steps != ("eager",):
                raise UserError(f"backend {name} has no choice of steps: use --backend torch")
        dtype_bytes(self.dtype)
        config = get_config(self.model)
        total = self.prompt_len + self.output_len - 1
        if total > config.max_context_len:
            raise UserError(
                f"{total} tokens are more than the {config.max_context_len} that {config.name} "
                "was trained for: use a smaller --prompt-len or --output-len"
            )
        if self.weights not in ("real", "random"):
            raise UserError(f"unknown weights {self.weights!r}: use real or random")
        if self.weights == "real" and config.source is None:
            raise UserError(f"{config.name} has no published weights: use --weights random")
        for name in self.formats:
            if name:
                check_format(config, name)
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"unknown device {self.device!r}: use auto, cpu or cuda")


@dataclass(frozen=True, slots=True)
class Result:
    """Prediction and measurement of one case."""

    case: str
    status: str  # ok | oom
    params: dict[str, Any]
    ceilings: Ceilings
    predicted: dict[str, float]
    measured: dict[str, Estimate]
    machine: Machine
    trace: Trace | None
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; times in seconds, `n` is the raw sample count behind a median."""
        return {
            "case": self.case,
            "label": "measured",
            "status": self.status,
            "detail": self.detail,
            **self.params,
            "predicted": self.predicted,
            "measured": {
                metric: {
                    "median": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "n": estimate.n,
                }
                for metric, estimate in self.measured.items()
            },
            "ceilings": asdict(self.ceilings),
            "machine": self.machine.model_dump(mode="json"),
        }


def measure_plan(
    plan: Plan,
    stop: StopRule,
    say: Callable[[str], None] = lambda line: None,
    *,
    keep_traces: bool = False,
) -> list[Result]:
    """Predict, then time, every backend and batch size of `plan`, interleaved.

    `keep_traces` runs each case once more at the end, for its event log.
    """
    device = current_profile().device if plan.device == "auto" else plan.device
    for step in plan.steps:
        check_step(step, torch_device(device))
    cases: dict[str, Case] = {}
    limits: dict[str, Ceilings] = {}
    traces: dict[str, Callable[[], Trace]] = {}
    for name, quant, step in itertools.product(plan.backends, plan.formats, plan.steps):
        as_format, by_step = f" as {quant}" if quant else "", f", step {step}"
        say(f"loading {plan.model} into {name}{as_format}{by_step * (step != 'eager')} ...")
        options = {"quant": quant} if quant else {}
        options |= {"step": step} if step != "eager" else {}
        backend = load_backend(
            name, plan.model, plan.dtype, device, weights=plan.weights, **options
        )
        say("measuring this machine's ceilings and the overhead of a step ...")
        ceilings, expect = _predictor(backend, device)
        for batch_size in plan.batch_sizes:
            shape = Shape(batch_size, plan.prompt_len, plan.output_len)
            key = "-".join((name, plan.model, plan.dtype, *options.values(), shape.key))
            limits[key] = ceilings
            cases[key] = generation_case(
                backend,
                shape,
                ceilings=ceilings,
                predicted=expect(shape),
                params={"weights": plan.weights, "format": quant, "step": step},
            )
            traces[key] = _one_trace(backend, shape)
    samples = _samples(cases, stop, say)
    machine = describe_machine(device)
    return [
        _result(key, case, limits[key], samples[key], machine, traces[key] if keep_traces else None)
        for key, case in cases.items()
    ]


def _predictor(
    backend: Backend, device: str
) -> tuple[Ceilings, Callable[[Shape], dict[str, float]]]:
    """Ceilings to judge `backend` by, and what expects metrics of a shape from it.

    Quantized weights are predicted from their kernel's products alone and from steps of the same
    model with plain random weights, which take as long and are freed.
    """
    config, dtype = backend.config, backend.dtype
    if not quantized_weights(backend)[0]:
        fitted = fit_backend(backend, device)
        return fitted.decode, lambda shape: predict(
            config, dtype, shape, fitted.decode, fitted.prefill
        )
    fit = kernelfit.fit_format(backend, device)
    return fit.rest.decode, lambda shape: kernelfit.predict(backend, shape, fit)


def _samples(cases: dict[str, Case], stop: StopRule, say: Callable[[str], None]) -> dict[str, list]:
    """Samples by case; says which round it is in."""
    found: dict[str, list] = {key: [] for key in cases}
    runs = {key: case.run for key, case in cases.items()}

    def announce(key: str, round_index: int) -> None:
        if key == next(iter(cases)):
            say("warming up ..." if round_index < 0 else f"round {round_index + 1} ...")

    for sample in interleave(runs, stop, on_start=announce):
        found[sample.case].append(sample)
    return found


def _result(
    key: str,
    case: Case,
    ceilings: Ceilings,
    samples: Sequence,
    machine: Machine,
    trace: Callable[[], Trace] | None,
) -> Result:
    lost = next((sample for sample in samples if sample.status == "oom"), None)
    timed = [sample.values for sample in samples if sample.status == "ok"]
    metrics = [] if lost or not timed else list(timed[0])
    return Result(
        case=key,
        status="oom" if lost else "ok",
        params=dict(case.params),
        ceilings=ceilings,
        predicted=dict(case.predicted),
        measured={m: median_interval([values[m] for values in timed]) for m in metrics},
        machine=machine,
        trace=trace() if trace and not lost else None,
        detail=lost.detail if lost else "",
    )


def _one_trace(backend: Backend, shape: Shape) -> Callable[[], Trace]:
    return lambda: backend.run(shaped_batch(backend, shape)).trace


def save_traces(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write one event log a case into `folder`."""
    paths = []
    for result in results:
        if result.trace is not None:
            path = folder / f"{result.case}.jsonl"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                save_trace(result.trace, path)
            except (OSError, TraceError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(cause, OSError):
                    raise
                raise disk_error(cause, "a trace", path, option="--save-trace") from error
            paths.append(path)
    return paths
