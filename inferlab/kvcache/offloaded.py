"""What does decoding cost when the cache lives in host memory and visits the GPU layer by layer?

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import torch

from inferlab.errors import UserError
from inferlab.kvcache.base import CacheShape


class OffloadedCache:
    """Keys and values in pinned host memory; two layers' worth of them on the GPU at a time.

    While layer l computes, a second stream brings layer l + 1. Stored as [S, B, G, D], so that
    the first S positions are one contiguous copy. Each step moves the whole cache over the bus:
    the floor is cache bytes / bus bandwidth.
    """

    recomputes = False

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        device = torch.device(device)
        if device.type != "cuda":
            raise UserError(
                "the offloaded cache moves keys and values between host and GPU memory, "
                "which means nothing on a CPU: choose none, dynamic or static"
            )
        self.shape = shape
        self.length = 0
        size = (2, shape.capacity, shape.batch_size, shape.num_kv_heads, shape.head_dim)
        self._host = [
            torch.empty(size, dtype=dtype, pin_memory=True) for _ in range(shape.num_layers)
        ]
        self._slots = [torch.empty(size, dtype=dtype, device=device) for _ in range(2)]
        self._copies = torch.cuda.Stream(device)
        self._arrived = [torch.cuda.Event(), torch.cuda.Event()]
        self._device = device

    def _fetch(self, layer: int) -> None:
        """Start to copy the stored positions of `layer` to its slot, behind queued compute.

        Waiting for the compute stream keeps two orders: the attention that still reads this slot
        (layer - 2) is done, and so is the write of this layer's last token to the host.
        """
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        slot = self._slots[layer % 2]
        with torch.cuda.stream(self._copies):
            for part in (0, 1):
                stored = self._host[layer][part, : self.length]
                slot[part, : self.length].copy_(stored, non_blocking=True)
            self._arrived[layer % 2].record(self._copies)

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add [B, G, T, D] and return all positions on the GPU, views [B, G, S, D]."""
        start, new = self.length, keys.shape[2]
        end = start + new
        self.shape.check_room(end, "offloaded")
        if start:
            if layer == 0:
                self._fetch(0)
            torch.cuda.current_stream(self._device).wait_event(self._arrived[layer % 2])
            if layer + 1 < self.shape.num_layers:
                self._fetch(layer + 1)
        slot = self._slots[layer % 2]
        for part, tensor in enumerate((keys, values)):
            slot[part, start:end].copy_(tensor.permute(2, 0, 1, 3))
            # From the slot, where the new positions are contiguous: one plain copy.
            self._host[layer][part, start:end].copy_(slot[part, start:end], non_blocking=True)
        full = slot[:, :end].permute(0, 2, 3, 1, 4)
        return full[0], full[1]

    def advance(self, num_positions: int) -> None:
        """Count the stored positions."""
        self.length += num_positions

    def reset(self) -> None:
        """Start again at position 0."""
        torch.cuda.current_stream(self._device).wait_stream(self._copies)
        self.length = 0

    def num_bytes(self) -> int:
        """Bytes in host memory, of the whole capacity (two more layers lie on the GPU)."""
        return sum(host.numel() * host.element_size() for host in self._host)
