"""How long does a decode step take with each way of multiplying by low-bit weights?

Speed does not depend on the values of weights, keys or values: a cell (variant, batch size,
context) is timed on a cache that is filled with a constant, without reading a prompt first.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from inferlab import bench, quantcost
from inferlab.backends.base import Backend, load_backend
from inferlab.backends.torch import TorchBackend
from inferlab.decoding.sampling import GREEDY, choose
from inferlab.errors import UserError
from inferlab.filledcache import FilledCaches
from inferlab.hardware.probes import synchronize
from inferlab.metrics import itl_s
from inferlab.models.cost import weight_bytes
from inferlab.models.decoder import Decoder
from inferlab.models.load import load_decoder, resolve_config
from inferlab.models.placement import check_device_room
from inferlab.models.projections import replace_weights
from inferlab.profiles import Profile
from inferlab.quant.formats import get_format
from inferlab.recorder import Case
from inferlab.stepprofile import operator_shares
from inferlab.trace import Request, Trace
from inferlab.workload import uniform_batch

BASELINE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Variant:
    """A weight format and what multiplies by it; `format` None keeps the plain weights."""

    format: str | None
    kernel: str = "auto"
    backend: str = "torch"


VARIANTS: dict[str, Variant] = {
    BASELINE: Variant(None),
    "int8": Variant("int8"),
    "int4-g32": Variant("int4-g32"),
    "int8-naive": Variant("int8", "naive"),
    "int4-naive": Variant("int4-g32", "naive"),
    "int4-torchao": Variant("int4-g32", "torchao"),
    "int4-genai": Variant("int4-g32", "genai", "onnx"),
}
OURS = (BASELINE, "int8", "int4-g32")  # these see every batch size and context


@dataclass(frozen=True, slots=True)
class Sweep:
    """Which cells are timed, and which shapes fit the predictions: none of them is a cell."""

    batch_sizes: tuple[int, ...]
    context_lens: tuple[int, ...]
    steps: int  # timed in a case
    rounds: int
    probe_rows: tuple[int, ...]  # of the products alone
    rest_shapes: tuple[tuple[int, int], ...]  # (batch size, context) of whole plain steps
    is_full: bool  # every batch size at every context, and naive kernels at the largest one too

    def probed(self, variant: str) -> tuple[int, ...]:
        """Rows at which the products of `variant` are timed alone: two for the slow naive ones."""
        ends = (self.probe_rows[0], self.probe_rows[-1])
        return ends if "naive" in variant else self.probe_rows

    def wants(self, variant: str, batch_size: int, context_len: int) -> bool:
        """Whether the cell is timed. Naive kernels and peers are at the first context only."""
        at_first = context_len == self.context_lens[0]
        if variant in OURS:
            return self.is_full or at_first or batch_size == self.batch_sizes[0]
        ends = (self.batch_sizes[0], self.batch_sizes[-1] if self.is_full else 0)
        return at_first and ("naive" not in variant or batch_size in ends)


def sweep(profile: Profile, deep: bool) -> Sweep:
    """The cells of this class of machine; `deep` adds cells, steps and rounds on a CPU."""
    if profile.device == "cpu":
        return Sweep(
            batch_sizes=(1, 2, 4, 8, 16) if deep else (1, 4, 16),
            context_lens=(64, 1024) if deep else (64, 512),
            steps=8 if deep else 4,
            rounds=7 if deep else 3,
            probe_rows=(1, 3, 6, 12, 24),
            rest_shapes=((1, 41), (7, 41), (1, 331), (5, 211)),
            is_full=deep,
        )
    return Sweep(
        batch_sizes=profile.batch_sizes,
        context_lens=(profile.context_lens[0], profile.context_lens[-1]),
        steps=16,
        rounds=7,
        probe_rows=(1, 3, 12, 48, 192, 384),
        rest_shapes=((1, 41), (47, 41), (1, 1531), (21, 911)),
        is_full=True,
    )


def open_variants(
    model: str, dtype: str, device: str, weights: str, names: Iterable[str] = tuple(VARIANTS)
) -> tuple[dict[str, Backend], dict[str, str]]:
    """(what could be opened, why the others could not): one backend a variant.

    Every variant has its own copy of the weights, head included, all in memory at once so that
    they can be timed in turn. One that the device lacks, or that no longer fits, is left out.
    """
    opened: dict[str, Backend] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            if opened:  # a plain copy of the weights and its codes are both there for a while
                needed = 1.8 * weight_bytes(resolve_config(model), dtype)
                what = f"another copy of {model} beside {len(opened)} others"
                check_device_room(needed, what, device)
            opened[name] = _open(VARIANTS[name], model, dtype, device, weights)
        except UserError as error:
            skipped[name] = str(error)
    if BASELINE not in opened:
        raise UserError(f"{model} in {dtype} cannot be opened on {device}: {skipped[BASELINE]}")
    return opened, skipped


def _open(variant: Variant, model: str, dtype: str, device: str, weights: str) -> Backend:
    if variant.backend != "torch":
        if weights != "real":
            raise UserError(f"{variant.backend} takes real weights only; {model} has random ones")
        return genai_int4(model, device)
    decoder = load_decoder(model, dtype, device, weights, pack=variant.format is None)
    if variant.format:
        replace_weights(decoder, get_format(variant.format), variant.kernel)
    return TorchBackend(decoder, "static", weights=weights)


def genai_int4(model: str, device: str, equivalent: str = "plain") -> Backend:
    """ONNX Runtime GenAI with its own int4 weights, activations in the dtype that it keeps them."""
    from inferlab.backends.onnx import ACTIVATIONS

    kind = device.partition(":")[0]
    return load_backend(
        "onnx", model, ACTIVATIONS[kind]["int4"], device, precision="int4", equivalent=equivalent
    )


def decode_trace(
    decoder: Decoder, batch_size: int, context_len: int, steps: int, caches: FilledCaches
) -> Trace:
    """`steps` + 1 greedy decode steps of B sequences that hold `context_len` positions each.

    The first one is the first token of the trace, so TPOT is the mean of the other `steps`. On a
    GPU the steps are replayed from CUDA graphs: they wait for memory and not for the host.
    """
    device = decoder.device
    cache = caches.lend(decoder, batch_size, context_len, steps + 1)
    take_step = caches.stepper(decoder)
    tokens = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
    positions = torch.arange(context_len, context_len + steps + 1, device=device)[None]
    events = []
    with torch.inference_mode():
        synchronize(device)
        start = time.perf_counter()
        for step in range(steps + 1):
            logits = take_step(tokens, cache, positions[:, step : step + 1])
            tokens = choose(logits, GREEDY, None)[:, None]
            synchronize(device)
            events.append((time.perf_counter() - start, 1))
    return Trace(
        tuple(Request(f"r{i:04d}", 0.0, 0.0, context_len, tuple(events)) for i in range(batch_size))
    )


def step_metrics(trace: Trace) -> dict[str, float]:
    """TPOT, output throughput and the fastest step of a trace; no TTFT: no prompt was read."""
    metrics = bench.trace_metrics(trace)
    gaps = [gap for request in trace.requests for gap in itl_s(request)]
    # Other load only ever adds time, so bands are judged on the fastest step.
    found = {"tpot_s": metrics["tpot_s"], "fastest_step_s": min(gaps)}
    return {**found, "output_tok_per_s": len(trace.requests) / metrics["tpot_s"]}


def cell_case(
    variant: str,
    backend: Backend,
    batch_size: int,
    context_len: int,
    steps: int,
    caches: FilledCaches,
    laws: Mapping[str, quantcost.KernelLaw] | None = None,
    rest: quantcost.RestLaw | None = None,
) -> Case:
    """A case of one cell: decode steps of a variant, predicted where its products were timed.

    A backend that is not ours reads a real prompt of `context_len` tokens and writes on.
    """
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        workload = functools.cache(
            lambda: uniform_batch(backend.config.vocab_size, batch_size, context_len, steps + 1)
        )

    def run() -> dict[str, float]:
        if decoder is None:
            return step_metrics(backend.run(workload()).trace)
        return step_metrics(decode_trace(decoder, batch_size, context_len, steps, caches))

    predicted = {}
    if decoder is not None and laws and rest and variant in laws:
        products_s = laws[variant].seconds(batch_size)
        rest_s = rest.seconds(batch_size, context_len)
        # one token a sequence and step
        predicted = {
            "tpot_s": products_s + rest_s, "products_s": products_s, "rest_s": rest_s,
            "decode_memory_s": laws[variant].read_s,
            "decode_compute_s": laws[variant].row_s * batch_size,
            "output_tok_per_s": batch_size / (products_s + rest_s),
        }  # fmt: skip
    params = {
        **_described(variant, backend), "batch_size": batch_size, "context_len": context_len,
        "output_len": steps + 1,
    }  # fmt: skip
    return Case(run, params, predicted)


def products_case(variant: str, decoder: Decoder, rows: int) -> Case:
    """All products with weights of one step of `rows` rows, in order, and nothing else."""
    products = bench.projection_run(decoder, rows)

    def run() -> dict[str, float]:
        return {"products_s": products()["step_s"]}

    params = {"model": decoder.config.name, "variant": variant, "rows": rows, "phase": "products"}
    return Case(run, params)


def profile_case(variant: str, backend: Backend, context_len: int, caches: FilledCaches) -> Case:
    """Where the operators of one step at batch size 1 spend their time, and how many there are."""
    decoder = backend.decoder

    @torch.inference_mode()
    def step() -> None:  # from the host, also on a GPU: a replayed graph has no operators
        cache = caches.lend(decoder, 1, context_len, 1)
        decoder(torch.zeros(1, 1, dtype=torch.int64, device=decoder.device), cache,
                torch.full((1, 1), context_len, device=decoder.device))  # fmt: skip

    def run() -> dict[str, float]:
        return operator_shares(step, decoder.device)

    params = {**_described(variant, backend), "phase": "profile", "batch_size": 1}
    return Case(run, {**params, "context_len": context_len})


def _described(variant: str, backend: Backend) -> dict[str, Any]:
    known = VARIANTS[variant]
    return {
        "variant": variant, "format": known.format or BASELINE, "kernel": known.kernel,
        "backend": backend.name, "model": backend.config.name, "dtype": backend.dtype,
    }  # fmt: skip
