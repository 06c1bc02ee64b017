"""How is a decode step timed at a context without reading a prompt of that length first?

Speed does not depend on the values of keys and values, so a cache is filled with a constant.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import torch

from inferlab.decoding.steps import Stepper, make_stepper
from inferlab.kvcache import KVCache
from inferlab.models.decoder import Decoder
from inferlab.models.placement import check_host_memory


class FilledCaches:
    """The cache of one shape at a time, full of a constant, lent to every variant in turn."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._cache: KVCache | None = None
        self._steppers: dict[int, Stepper] = {}

    def lend(
        self, decoder: Decoder | Stepper, batch_size: int, context_len: int, steps: int
    ) -> KVCache:
        """A cache that holds `context_len` positions and has room for `steps` more.

        It is the bucketed one for a Stepper that is not eager and for our decoder on a GPU (see
        `stepper`), else the static one.
        """
        config, capacity = decoder.config, context_len + steps
        kind = getattr(self.stepper(decoder), "cache_kind", "static")
        key = (kind, config, decoder.dtype, decoder.device, batch_size, context_len, capacity)
        if self._key != key:
            self._key = self._cache = None  # let go of the old one first
            for stepper in self._steppers.values():
                stepper.release()  # their graphs hold its addresses
            self._steppers.clear()
            shape = (batch_size, config.num_kv_heads, context_len, config.head_dim)
            size = 2 * config.num_layers * batch_size * config.kv_size * capacity
            check_host_memory(size * decoder.dtype.itemsize, "the cache of a cell", decoder.device)
            cache = decoder.new_cache(kind, batch_size, capacity)
            constant = torch.full((1,), 0.01, dtype=decoder.dtype, device=decoder.device)
            for layer in range(config.num_layers):
                cache.update(layer, constant.expand(shape), constant.expand(shape))
            self._key, self._cache = key, cache
        self._cache.length = context_len
        return self._cache

    def stepper(self, decoder: Decoder | Stepper) -> Decoder | Stepper:
        """What to call for a step: on a GPU our decoder's CUDA graphs over the lent cache."""
        replayed = isinstance(decoder, Decoder) and decoder.device.type == "cuda"
        if not replayed and not isinstance(decoder, Stepper):
            return decoder
        if id(decoder) not in self._steppers:
            made = make_stepper(decoder, "graph") if replayed else decoder
            self._steppers[id(decoder)] = made
        return self._steppers[id(decoder)]
