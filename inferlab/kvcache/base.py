"""What does a decoder ask of a cache of keys and values?

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from inferlab.errors import MeasurementError


class CacheTooSmall(MeasurementError):
    """More positions were asked for than the cache was made for."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Size of a cache: L layers, B sequences, G key/value heads, S positions at most, D a head."""

    num_layers: int
    batch_size: int
    num_kv_heads: int
    capacity: int
    head_dim: int

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values together when every position is filled."""
        per_position = 2 * self.num_layers * self.batch_size * self.num_kv_heads * self.head_dim
        return per_position * self.capacity * dtype.itemsize

    def check_room(self, end: int, kind: str) -> None:
        """Refuse to write up to position `end` in a cache of this size, before anything is."""
        if end > self.capacity:
            raise CacheTooSmall(
                f"position {end} is beyond the {kind} cache of {self.capacity}: "
                "make it larger or the text shorter"
            )


class KVCache(Protocol):
    """Keys and values of the positions that a decoder has already read.

    One forward pass over T new tokens calls `update` once a layer, in order, then `advance(T)`.
    A cache may also have `attend(layer, queries [B, T, G R, D], keys [B, G, T, D], values, mask)`
    -> [B, T, G R D]: it is called instead of `update`, stores the new positions and attends to all;
    and `begin(positions [B or 1, T], mask) -> mask`, called once before the first layer.
    """

    length: int  # positions stored
    recomputes: bool  # True: the decoder is given all tokens at every step

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add [B, G, T, D] and return all S = length + T positions, [B, G, S, D] each."""
        ...

    def advance(self, num_positions: int) -> None:
        """Count `num_positions` as stored, after the last layer."""
        ...

    def reset(self) -> None:
        """Forget every position (memory that was preallocated stays)."""
        ...

    def num_bytes(self) -> int:
        """Bytes held now, wherever they are."""
        ...
