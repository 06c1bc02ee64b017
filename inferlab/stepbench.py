"""What does a decode step take on each rung of the ladder?

A rung changes one thing: who runs the step, its cache, where the weights lie, how it is started.
Predictions come from counted bytes, counted operators and the measured cost of an empty one.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inferlab import bench, kernels, launchprobes, roofline, stepcost
from inferlab.backends import hf as hf_backend
from inferlab.backends.base import Backend
from inferlab.backends.torch import TorchBackend
from inferlab.cachecost import step_cost
from inferlab.calibration import quick_ceilings, reading_s
from inferlab.decoding.steps import make_stepper
from inferlab.errors import UserError
from inferlab.launchprobes import LaunchCosts, StepCounts
from inferlab.metrics import itl_s
from inferlab.models.config import ModelConfig
from inferlab.models.cost import StepCost, decode_cost, weight_bytes
from inferlab.models.layers import can_pack
from inferlab.models.load import load_decoder, resolve_config
from inferlab.models.placement import torch_dtype
from inferlab.recorder import Case
from inferlab.timing import Run
from inferlab.workload import Workload, uniform_batch

HF = "hf"
REORDERED = 2  # times that oneDNN moves a plain bfloat16 weight when it re-orders it at each call
COUNTED_STEPS = 2  # of the longer of two runs whose operators are counted
COUNTED_SHAPE = bench.Shape(1, 8, COUNTED_STEPS)
REPLAYED = ("compile", "max-autotune", "graph", "kernels-graph")  # of a GPU: started as one graph


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to run the same step, and the rung that it differs from in one thing."""

    name: str
    before: str | None
    change: str
    cache: str = "static"
    pack: bool = False
    step: str = "eager"


_FIRST = (
    Rung(HF, None, "transformers' generate"),
    Rung("growing", HF, "our decoder: fused projections, a short path in Python", "dynamic"),
    Rung("static", "growing", "a cache that is written in place"),
)
RUNGS: dict[str, tuple[Rung, ...]] = {
    "cpu": (
        *_FIRST,
        Rung("packed", "static", "weights laid out for oneDNN once", pack=True),
        Rung("fixed", "packed", "fixed shapes: a bucket under a mask", "bucketed", True),
        Rung("compile", "fixed", "compiled, frozen: Inductor lays the weights out", "bucketed",
             step="compile"),
    ),
    "cuda": (
        *_FIRST,
        Rung("fixed", "static", "fixed shapes: a bucket under a mask", "bucketed"),
        Rung("graph", "fixed", "replayed from a CUDA graph", "bucketed", step="graph"),
        Rung("compile", "graph", "compiled, then replayed", "bucketed", step="compile"),
        Rung("max-autotune", "compile", "products searched for", "bucketed", step="max-autotune"),
        Rung("kernels", "fixed", "our fused kernels", "bucketed", step="kernels"),
        Rung("kernels-graph", "graph", "our fused kernels, replayed", "bucketed",
             step="kernels-graph"),
    ),
}  # fmt: skip


def rungs(device: str, max_autotune: bool = True) -> dict[str, Rung]:
    """The ladder of `device` by name; without Triton a GPU has no rungs of our kernels.

    `max_autotune` false leaves out the rung whose search takes minutes.
    """
    kind = torch.device(device).type
    found = {rung.name: rung for rung in RUNGS[kind]}
    if kernels.why_unavailable(torch.device(device)):
        found = {name: rung for name, rung in found.items() if "kernels" not in name}
    if not max_autotune:
        found.pop("max-autotune", None)
    return found


def open_rungs(
    model: str | ModelConfig,
    dtype: str,
    device: str,
    weights: str,
    ladder: Mapping[str, Rung],
    room_bytes: float | None = None,
) -> dict[str, Backend]:
    """A backend a rung, sharing weights that lie the same way.

    hf needs a copy of its own: it is left out where two copies and half as much again do not fit
    in `room_bytes` (None: no limit is known).
    """
    config, decoders, opened = resolve_config(model), {}, {}
    fits = room_bytes is None or 2.5 * weight_bytes(config, dtype) < room_bytes
    for name, rung in ladder.items():
        if name == HF:
            if fits:
                opened[name] = hf_backend.load(config, dtype, device, weights)
            continue
        packs = rung.pack and can_pack(torch_dtype(dtype))
        if packs not in decoders:
            decoders[packs] = load_decoder(config, dtype, device, weights, pack=packs)
        stepper = make_stepper(decoders[packs], rung.step)
        opened[name] = TorchBackend(stepper, rung.cache, weights=weights)
    return opened


def count_step(backend: Backend, shape: bench.Shape = COUNTED_SHAPE) -> StepCounts:
    """Operators and GPU kernels of one step, from the difference between two runs.

    They differ in one step and one token of the prompt, and fill caches of one capacity. How long
    the text is does not matter: a compiled step serves every length.
    """
    device = str(getattr(backend, "device", "cpu"))
    total = shape.prompt_len + shape.output_len
    if total <= COUNTED_STEPS:
        raise UserError(f"counting needs a shape of more than {COUNTED_STEPS} tokens, not {total}")

    def run_of(steps: int) -> Callable[[], Any]:
        work = workload_of(backend.config, bench.Shape(shape.batch_size, total - steps, steps))
        return lambda: backend.run(work)

    more, less = (
        launchprobes.count(run_of(steps), device) for steps in (COUNTED_STEPS, COUNTED_STEPS - 1)
    )
    return StepCounts(more.operators - less.operators, more.kernels - less.kernels)


def host_s(rung: Rung, counts: StepCounts, costs: LaunchCosts) -> float:
    """The launch-bound estimate: what starting everything takes, however little it computes.

    From a CUDA graph the GPU itself starts each kernel. Triton's launches are no operators of
    PyTorch, so that outside of a graph whichever there are more of are counted.
    """
    if costs.graph_s is not None and rung.step in REPLAYED:
        return stepcost.launch_bound_s(counts.kernels, costs.graph_s)
    return stepcost.launch_bound_s(max(counts.operators, counts.kernels), costs.operator_s)


def expected_cost(
    rung: Rung, config: ModelConfig, dtype: str, device: str, shape: bench.Shape
) -> StepCost:
    """What the rung's step moves: a growing cache twice over, plain weights on a CPU as often."""
    kind = "dynamic" if rung.cache == "dynamic" or rung.name == HF else "static"
    cost = step_cost(config, dtype, kind, shape.batch_size, shape.mean_context_len)
    lies_plain = not rung.pack and rung.step not in ("compile", "max-autotune")
    if torch.device(device).type == "cpu" and lies_plain and can_pack(torch_dtype(dtype)):
        cost = dataclasses.replace(cost, weight_bytes=REORDERED * cost.weight_bytes)
    return cost


def ladder_case(
    rung: Rung,
    backend: Backend,
    shape: bench.Shape,
    device: str,
    counts: StepCounts,
    costs: LaunchCosts,
    work: Workload,
    reference: Sequence[list[int]] | None = None,
) -> Case:
    """A rung timed over a whole answer to `work`, with its floor and host time, and expected time.

    `shape` is that of `work`. With `reference` each sample says which share of its tokens agree.
    """
    config, dtype = backend.config, backend.dtype
    limits = quick_ceilings(config, dtype, device)
    least = decode_cost(config, dtype, shape.batch_size, shape.mean_context_len)
    host, floor = host_s(rung, counts, costs), roofline.floor_s(least, limits)
    overlaps = torch.device(device).type == "cuda"
    moved = expected_cost(rung, config, dtype, device, shape)
    params = {
        "rung": rung.name, "before": rung.before or "", "change": rung.change,
        "step": rung.step, "cache": rung.cache if rung.name != HF else "dynamic",
        "backend": backend.name, "model": config.name, "dtype": dtype,
        "batch_size": shape.batch_size, "prompt_len": shape.prompt_len,
        "output_len": shape.output_len, "context_len": shape.mean_context_len,
        "operators": counts.operators, "kernels": counts.kernels,
    }  # fmt: skip
    predicted = {
        "tpot_s": stepcost.predict_step_s(moved, limits, host, overlaps),
        "floor_s": floor,
        "host_s": host,
    }
    return Case(_answer_run(backend, work, least.bytes, device, reference), params, predicted)


def workload_of(config: ModelConfig, shape: bench.Shape, seed: int = 0) -> Workload:
    """Uniform random prompts of `shape`."""
    return uniform_batch(
        config.vocab_size, shape.batch_size, shape.prompt_len, shape.output_len, seed
    )


def _answer_run(
    backend: Backend,
    work: Workload,
    read_bytes: float,
    device: str,
    reference: Sequence[list[int]] | None,
) -> Run:
    def run() -> dict[str, float]:
        found = backend.run(work)
        metrics = bench.trace_metrics(found.trace)
        metrics["floor_s"] = reading_s(int(read_bytes), device)
        metrics["mbu_ratio"] = metrics["floor_s"] / metrics["tpot_s"]
        # Other load only ever adds time: orderings are judged on the fastest step.
        metrics["fastest_step_s"] = min(gap for r in found.trace.requests for gap in itl_s(r))
        if reference is not None:
            metrics["equal_ratio"] = equal_ratio(found.token_ids, reference)
        return metrics

    return run


def tokens_of(backends: Mapping[str, Backend], work: Workload) -> dict[str, list[list[int]]]:
    """The token ids that each backend writes for `work`."""
    return {name: backend.run(work).token_ids for name, backend in backends.items()}


def equal_ratio(written: Iterable[list[int]], reference: Iterable[list[int]]) -> float:
    """Share of tokens that are equal, place by place."""
    pairs = [
        a == b
        for ours, theirs in zip(written, reference, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return sum(pairs) / len(pairs)
