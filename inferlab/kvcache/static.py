"""What does a cache save that is allocated once and written in place?

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import torch

from inferlab.kvcache.base import CacheShape


class StaticCache:
    """Preallocated [B, G, capacity, D] a layer: a step writes T positions and copies nothing.

    The price is memory for the longest text that may come, whether it comes or not.
    """

    recomputes = False

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.length = 0
        size = (
            2,
            shape.num_layers,
            shape.batch_size,
            shape.num_kv_heads,
            shape.capacity,
            shape.head_dim,
        )
        # Filled, not just reserved: the pages must exist before a step is timed.
        self._store = torch.empty(size, dtype=dtype, device=device).zero_()
        self._keys = self._store[0].unbind(0)
        self._values = self._store[1].unbind(0)

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, G, T, D] behind the stored positions; returns views [B, G, S, D]."""
        start, new = self.length, keys.shape[2]
        end = start + new
        self.shape.check_room(end, "static")
        stored_keys, stored_values = self._keys[layer], self._values[layer]
        stored_keys.narrow(2, start, new).copy_(keys)
        stored_values.narrow(2, start, new).copy_(values)
        return stored_keys.narrow(2, 0, end), stored_values.narrow(2, 0, end)

    def advance(self, num_positions: int) -> None:
        """Count the written positions."""
        self.length += num_positions

    def reset(self) -> None:
        """Start again at position 0; what was written is overwritten in time."""
        self.length = 0

    def num_bytes(self) -> int:
        """Bytes of the whole capacity, filled or not."""
        return self._store.numel() * self._store.element_size()
