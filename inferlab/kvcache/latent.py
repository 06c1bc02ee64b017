"""What does a cache hold that keeps one short vector a token instead of keys and values?

A latent [r] a token and layer, from which keys and values are made again at each step. The keys'
rotation goes by position, so the angles are kept too: once for all layers, and once for all rows
where their positions agree.
Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 (multi-head latent attention).
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

import torch

from inferlab.kvcache.base import CacheShape

Rope = tuple[torch.Tensor, torch.Tensor]


class LatentCache:
    """Preallocated [B, capacity, r] a layer, written in place.

    `shape` is that of a cache with one "head" of r numbers; `head_dim` is the size of the angles (0
    where what is kept is rotated already).
    """

    recomputes = False

    def __init__(
        self, shape: CacheShape, dtype: torch.dtype, device: torch.device, angle_dim: int = 0
    ) -> None:
        self.shape, self.angle_dim = shape, angle_dim
        self.length = 0
        size = (shape.batch_size, shape.capacity, shape.head_dim)
        self._latents = [
            torch.empty(size, dtype=dtype, device=device).zero_() for _ in range(shape.num_layers)
        ]
        # Cosines and sines of each position; a row for each sequence only where rows differ.
        self._angles = torch.zeros(2, 1, shape.capacity, angle_dim, dtype=dtype, device=device)

    def append(
        self, layer: int, latents: torch.Tensor, rope: Rope | None = None
    ) -> tuple[torch.Tensor, Rope | None]:
        """Write [B, T, r] and the angles [B or 1, T, 1, D] of the new positions.

        Returns all S = length + T of both, [B, S, r] and [B or 1, S, 1, D] (None without angles).
        """
        start, end = self.length, self.length + latents.shape[1]
        self.shape.check_room(end, "latent")
        self._latents[layer][:, start:end].copy_(latents)
        if rope is None or not self.angle_dim:
            return self._latents[layer][:, :end], None
        if layer == 0:
            self._keep_angles(rope, start, end)
        cosines, sines = self._angles[:, :, :end, None].unbind(0)
        return self._latents[layer][:, :end], (cosines, sines)

    def _keep_angles(self, rope: Rope, start: int, end: int) -> None:
        rows = rope[0].shape[0]
        if rows > self._angles.shape[1]:
            self._angles = self._angles.expand(-1, rows, -1, -1).contiguous()
        for kept, new in zip(self._angles, rope, strict=True):
            kept[:, start:end].copy_(new.squeeze(2))

    def advance(self, num_positions: int) -> None:
        """Count the written positions."""
        self.length += num_positions

    def reset(self) -> None:
        """Start again at position 0; what was written is overwritten in time."""
        self.length = 0

    def num_bytes(self) -> int:
        """Bytes of the whole capacity, filled or not, and of the angles."""
        held = [*self._latents, self._angles]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)
