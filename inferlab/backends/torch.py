"""How fast does our own decoder serve a batch?

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from inferlab.backends.base import (
    BackendRun,
    batch_bytes,
    check_static_batch,
    trace_of_batch,
)
from inferlab.decoding.generate import generate
from inferlab.decoding.sampling import GREEDY, Sampling
from inferlab.decoding.steps import COMPILED, KERNELS, Stepper, check_step, make_stepper
from inferlab.errors import UserError
from inferlab.hardware.probes import synchronize
from inferlab.kvcache import CACHES, KVCache
from inferlab.models.config import ModelConfig
from inferlab.models.cost import weight_bytes
from inferlab.models.decoder import Decoder
from inferlab.models.layers import can_pack
from inferlab.models.load import load_decoder, resolve_config
from inferlab.models.placement import check_host_memory, dtype_name, torch_device
from inferlab.models.projections import projections, replace_weights, weights_of
from inferlab.quant.formats import get_format
from inferlab.workload import Workload


class TorchBackend:
    """Our decoder and one kind of cache; a batch is prefilled together, then decoded in step.

    `weight_format` is that of quantized weights (None: plain ones), `kept` names the projections
    that stayed plain beside them. `stepper` is what takes the steps: the decoder in some mode.

    The cache is allocated before the clock starts and kept for the next run of the same size.
    """

    name = "torch"

    def __init__(
        self,
        decoder: Decoder | Stepper,
        cache: str = "static",
        sampling: Sampling = GREEDY,
        weights: str = "real",
    ) -> None:
        self.stepper = decoder if isinstance(decoder, Stepper) else make_stepper(decoder)
        self.decoder = decoder = self.stepper.decoder
        self.config = decoder.config
        self.dtype = dtype_name(decoder.dtype)
        self.cache = self.stepper.cache_kind if cache == "static" else cache
        self.sampling = sampling
        self.weights = weights
        self.weight_format, self.kept = weights_of(decoder)
        self._store: KVCache | None = None
        self._store_key: tuple[int, int] | None = None

    @property
    def kernel(self) -> str:
        """Class of the modules that do the products: kernels differ in speed, not in format."""
        kinds = {type(module).__name__ for _, module in projections(self.decoder)}
        return "+".join(sorted(kinds))

    @property
    def is_plain(self) -> bool:
        """Whether a CPU could have its weights packed and they are not: steps take longer."""
        if self.decoder.device.type != "cpu" or not can_pack(self.decoder.dtype):
            return False
        return getattr(self.decoder.head, "weight", None) is not None

    @property
    def step(self) -> str:
        """How steps are taken: one of STEPS."""
        return self.stepper.mode

    @property
    def device(self) -> torch.device:
        """Where the decoder lies."""
        return self.decoder.device

    def run(self, workload: Workload) -> BackendRun:
        """Serve one static batch. The device is synchronized before each look at the clock.

        Raises BatchTooLarge when a CPU could not hold it; a GPU's OutOfMemoryError passes through.
        """
        check_static_batch(workload)
        prompts = [spec.prompt_token_ids for spec in workload.requests]
        output_lens = [spec.output_len for spec in workload.requests]
        device = self.decoder.device
        times: list[float] = []

        def on_step(step: int, tokens: torch.Tensor) -> None:
            synchronize(device)
            times.append(time.perf_counter())

        try:
            store = self._prepare(workload)
            synchronize(device)
            start = time.perf_counter()
            token_ids = generate(self.stepper, prompts, output_lens, store, self.sampling, on_step)
        except Exception:
            self.release()  # after an out-of-memory error the next case needs the room
            raise
        meta = {
            "backend": self.name,
            "model": self.config.name,
            "weights": self.weights,
            "dtype": self.dtype,
            "device": device.type,
            **({"format": self.weight_format.name} if self.weight_format else {}),
            "step": self.step,
            "cache": self.cache,
            "cache_bytes": store.num_bytes(),
        }
        return BackendRun(
            trace_of_batch(workload, [moment - start for moment in times], meta), token_ids
        )

    def release(self) -> None:
        """Let go of the cache that is kept between runs, and of what was recorded over it."""
        self.stepper.release()
        self._store = self._store_key = None

    def _prepare(self, workload: Workload) -> KVCache:
        prompt = max(spec.prompt_len for spec in workload.requests)
        output = max(spec.output_len for spec in workload.requests)
        key = (workload.batch_size, prompt + output - 1)
        if self._store is None or self._store_key != key:
            self.release()
            ratio = {"none": 0.0, "dynamic": 1.1}.get(self.cache, 1.0)
            needed = batch_bytes(self.config, self.decoder.dtype.itemsize, workload, ratio)
            needed += self.stepper.more_bytes(workload.batch_size)
            # An offloaded cache lies in host memory, whatever the decoder runs on.
            where = torch.device("cpu") if self.cache == "offloaded" else self.decoder.device
            check_host_memory(needed, f"a batch of {key[0]} with {key[1]} positions each", where)
            self._store = self.stepper.new_cache(self.cache, *key)
            self._store_key = key
        return self._store


def load(
    model: str | ModelConfig,
    dtype: str,
    device: str,
    weights: str = "real",
    cache: str = "static",
    sampling: Sampling = GREEDY,
    pack: bool = True,
    seed: int = 0,
    quant: str | None = None,
    kernel: str = "auto",
    keep: Sequence[str] = (),
    step: str = "eager",
) -> TorchBackend:
    """Load the decoder; `seed` is that of random weights.

    `quant` names a weight format: weights are rounded to nearest and multiplied by with `kernel`
    (see `quant.linear.make_linear`), those that `keep` names stay plain. `step` is how decode steps
    are taken (see `decoding.steps`); a compiled one packs the weights itself, as a second copy.
    """
    if cache not in CACHES:
        raise UserError(f"unknown cache {str(cache)[:40]!r}; known: {', '.join(CACHES)}")
    check_step(step, torch_device(device))
    if step != "eager" and cache not in ("static", "bucketed"):
        raise UserError(f"step {step} needs the bucketed cache: leave out cache={cache!r}")
    if step in COMPILED and not quant:
        config = resolve_config(model)
        needed, what = 2 * weight_bytes(config, dtype), f"{config.name} and a packed copy of it"
        check_host_memory(needed, what, torch_device(device))
    format = get_format(quant) if quant else None  # before seconds are spent on loading
    packed = pack and not quant and step not in COMPILED + KERNELS
    decoder = load_decoder(model, dtype, device, weights, seed=seed, pack=packed)
    if format:
        replace_weights(decoder, format, kernel, keep)
    return TorchBackend(make_stepper(decoder, step), cache, sampling, weights)
