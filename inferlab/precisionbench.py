"""How long do a prefill and a decode step take in each number format?

Speed does not depend on the values of weights; the scales of static activation quantization come
from the calibration tokens. The head stays in bf16 in every variant that quantizes activations or
weights, as serving systems leave it.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from inferlab import bench
from inferlab.backends.autocast import AutocastBackend
from inferlab.backends.torch import TorchBackend
from inferlab.compression.lowprecision import replace_linears
from inferlab.errors import UserError
from inferlab.fitting import fit_shapes
from inferlab.hardware.probes import synchronize
from inferlab.models.cost import decode_cost, prefill_cost, weight_bytes
from inferlab.models.decoder import Decoder
from inferlab.models.load import load_decoder, resolve_config
from inferlab.models.placement import check_device_room
from inferlab.models.projections import projections
from inferlab.precisioncost import BASELINE, PhaseLaws, floors
from inferlab.quantbench import FilledCaches, decode_trace, step_metrics
from inferlab.quantcost import RestLaw
from inferlab.recorder import Case
from inferlab.roofline import Ceilings
from inferlab.workload import Workload

PARTS = ("layers", "head")


@dataclass(frozen=True, slots=True)
class Variant:
    """Format of weights and activations, and what multiplies them.

    `linear`: what replaces the projections ("" for none). `autocast`: "", "step" (float32 weights
    converted at each step) or "kept" (once a batch).
    """

    dtype: str = BASELINE
    linear: str = ""
    autocast: str = ""
    on: tuple[str, ...] = ("cpu", "cuda")  # device types on which it is timed


VARIANTS: dict[str, Variant] = {
    BASELINE: Variant(),
    "float32": Variant("float32"),
    "float16": Variant("float16"),
    "autocast": Variant("float32", autocast="step"),
    "autocast-kept": Variant("float32", autocast="kept"),
    "int8": Variant(linear="int8"),
    "w8a8": Variant(linear="w8a8"),
    "w8a8-unfused": Variant(linear="w8a8-unfused"),
    "w8a8-static": Variant(linear="w8a8-static"),
    "fp8-tensor": Variant(linear="fp8-tensor", on=("cuda",)),
    "fp8-row": Variant(linear="fp8-row", on=("cuda",)),
}


def open_variants(
    model: str,
    device: str,
    weights: str,
    calibration: torch.Tensor,
    names: Iterable[str] = tuple(VARIANTS),
) -> tuple[dict[str, TorchBackend], dict[str, str]]:
    """(what could be opened, why the others could not): one backend a variant, all in memory.

    `calibration` [n, T] token ids fix the scales of the static variant. The float32 decoder is
    shared by the variants that need it. One that the device lacks, or that does not fit, is left
    out and named.
    """
    opened: dict[str, TorchBackend] = {}
    skipped: dict[str, str] = {}
    exact: list[Decoder] = []
    for name in names:
        variant = VARIANTS[name]
        try:
            if variant.dtype != "float32" or not exact:
                check_room(model, variant, device, bool(opened))
            if variant.dtype == "float32":
                if not exact:
                    exact.append(load_decoder(model, "float32", device, weights))
                opened[name] = _open_exact(variant, exact[0], weights)
            else:
                opened[name] = _open(variant, model, device, weights, calibration)
        except UserError as error:
            skipped[name] = str(error)
    if BASELINE not in opened:
        raise UserError(f"{model} cannot be opened on {device}: {skipped.get(BASELINE)}")
    return opened, skipped


def check_room(model: str, variant: Variant, device: str, has_others: bool) -> None:
    """Refuse a variant that the device cannot run or that may not fit beside the others."""
    kind = torch.device(device).type
    if kind not in variant.on:
        raise UserError(f"{variant.linear} has no kernel on {kind}: only its quality is measured")
    if has_others:
        # Plain weights are quantized one projection after the other: both are there for a while.
        copies = 1.6 if variant.linear else 1.1
        needed = weight_bytes(resolve_config(model), variant.dtype)
        check_device_room(copies * needed, f"{model} in {variant.dtype} beside the others", device)


def _open_exact(variant: Variant, decoder: Decoder, weights: str) -> TorchBackend:
    if not variant.autocast:
        return TorchBackend(decoder, "static", weights=weights)
    return AutocastBackend(decoder, keeps_casts=variant.autocast == "kept", weights=weights)


def _open(
    variant: Variant, model: str, device: str, weights: str, calibration: torch.Tensor
) -> TorchBackend:
    plain = not variant.linear
    decoder = load_decoder(model, variant.dtype, device, weights, pack=plain)
    if not plain:
        replace_linears(decoder, variant.linear, calibration)
    return TorchBackend(decoder, "static", weights=weights)


def probe_rows(device: str, part: str, most_rows: int) -> tuple[int, ...]:
    """Numbers of rows at which products are timed, about up to `most_rows`: no case has them."""
    on_cpu = torch.device(device).type == "cpu"
    rows = (1, 3, 12, 48, 192, 384) if on_cpu else (1, 6, 24, 96, 384, 1536, 6144)
    if part == "head":  # a row a sequence
        return rows[:3] if on_cpu else rows[:5]
    enough = sum(count < most_rows for count in rows) + 1
    return rows[: max(2, enough)]


def rest_cases(backend: TorchBackend, device: str, caches: FilledCaches) -> dict[str, Case]:
    """Prefills and steps of the baseline at shapes of their own: short, wide, long."""
    shapes = fit_shapes(backend.config, device)
    cases = {}
    for shape in shapes:
        batch, length = shape.batch_size, shape.prompt_len
        where = f"{backend.config.name}/b{batch}-s{length}"
        cases[f"rest/prefill/{where}"] = prefill_case(BASELINE, backend, batch, length)
        decode = decode_case(BASELINE, backend, batch, length, shape.output_len - 1, caches)
        cases[f"rest/decode/{where}"] = decode
    return cases


def fixed_case(values: Mapping[str, float], params: Mapping[str, Any]) -> Case:
    """Values that were counted, not timed, as a case of a record."""
    return Case(lambda: dict(values), params)


def products_case(name: str, backend: TorchBackend, part: str, rows: int) -> Case:
    """All products of the layers, or the head, over `rows` rows, and nothing else."""
    decoder = backend.decoder
    modules = [m for n, m in projections(decoder) if (n == "head") == (part == "head")]
    inputs = {
        size: torch.randn(rows, size, device=decoder.device).to(decoder.dtype)
        for size in {module.in_features for module in modules}
    }
    step = getattr(decoder, "step", torch.inference_mode)
    block = getattr(decoder, "block", nullcontext)

    def run() -> dict[str, float]:
        with block():
            if getattr(decoder, "keeps_casts", False):
                _multiply(modules, inputs, step)  # converts the weights, outside the clock
            synchronize(decoder.device)
            start = time.perf_counter()
            _multiply(modules, inputs, step)
            synchronize(decoder.device)
            return {"products_s": time.perf_counter() - start}

    params = {
        "variant": name, "model": decoder.config.name, "part": part, "rows": rows,
        "phase": "products",
    }  # fmt: skip
    return Case(run, params)


def _multiply(modules: list, inputs: Mapping[int, torch.Tensor], step: Callable) -> None:
    with step():
        for module in modules:
            module(inputs[module.in_features])


def prefill_case(
    name: str,
    backend: TorchBackend,
    batch_size: int,
    prompt_len: int,
    ceilings: Ceilings | None = None,
    laws: Mapping[str, PhaseLaws] | None = None,
    rests: Mapping[str, RestLaw] | None = None,
) -> Case:
    """TTFT of a batch of prompts, nothing queued; predicted where the products were timed.

    The baseline also states its floors, with `ceilings`.
    """

    @functools.cache
    def workload() -> Workload:
        return bench.shaped_batch(backend, bench.Shape(batch_size, prompt_len, 1))

    def run() -> dict[str, float]:
        metrics = bench.trace_metrics(backend.run(workload()).trace)
        backend.release()
        return {"ttft_s": metrics["ttft_s"]}

    predicted = {}
    # The first pass of a kept block converts every weight, as each pass of a step block does.
    law = (laws or {}).get("autocast" if name == "autocast-kept" else name)
    if law and rests:
        predicted["ttft_s"] = law.prefill_s(rests["prefill"], batch_size, prompt_len)
    if name == BASELINE and ceilings:
        cost = prefill_cost(backend.config, BASELINE, batch_size, prompt_len)
        predicted |= floors(cost, ceilings.read_bytes_per_s, ceilings.flops_per_s)
    return Case(run, _params(name, backend, "prefill", batch_size, prompt_len), predicted)


def decode_case(
    name: str,
    backend: TorchBackend,
    batch_size: int,
    context_len: int,
    steps: int,
    caches: FilledCaches,
    ceilings: Ceilings | None = None,
    laws: Mapping[str, PhaseLaws] | None = None,
    rests: Mapping[str, RestLaw] | None = None,
) -> Case:
    """TPOT of `steps` decode steps on a filled cache; predicted where the products were timed."""
    decoder = backend.decoder
    keeps = getattr(decoder, "keeps_casts", False)

    def run() -> dict[str, float]:
        with decoder.block() if keeps else nullcontext():
            return step_metrics(decode_trace(decoder, batch_size, context_len, steps, caches))

    predicted = {}
    if laws and rests and name in laws:
        predicted["tpot_s"] = laws[name].decode_s(rests["decode"], batch_size, context_len)
    if name == BASELINE and ceilings:
        cost = decode_cost(backend.config, BASELINE, batch_size, context_len)
        predicted |= floors(cost, ceilings.read_bytes_per_s, ceilings.flops_per_s)
    return Case(run, _params(name, backend, "decode", batch_size, context_len), predicted)


def _params(
    name: str, backend: TorchBackend, phase: str, batch_size: int, context_len: int
) -> dict[str, Any]:
    return {
        "variant": name, "model": backend.config.name, "dtype": backend.dtype, "phase": phase,
        "batch_size": batch_size, "context_len": context_len,
    }  # fmt: skip
