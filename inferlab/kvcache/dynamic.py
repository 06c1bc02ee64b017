"""What does a cache cost that grows by concatenation, one token at a time?

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import torch

from inferlab.kvcache.base import CacheShape


class DynamicCache:
    """Concatenates: no limit and no waste, but every step copies all S positions of every layer.

    While a layer is updated, its old and its new copy are both in memory.
    """

    recomputes = False

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.reset()

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, G, T, D] on the position axis; returns [B, G, S, D]."""
        if self.length:
            keys = torch.cat((self._keys[layer], keys), dim=2)
            values = torch.cat((self._values[layer], values), dim=2)
        self._keys[layer] = keys
        self._values[layer] = values
        return keys, values

    def advance(self, num_positions: int) -> None:
        """Count the appended positions."""
        self.length += num_positions

    def reset(self) -> None:
        """Drop all tensors."""
        self.length = 0
        self._keys: list[torch.Tensor | None] = [None] * self.shape.num_layers
        self._values: list[torch.Tensor | None] = [None] * self.shape.num_layers

    def num_bytes(self) -> int:
        """Bytes of the positions stored so far."""
        held = [tensor for tensor in (*self._keys, *self._values) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)
