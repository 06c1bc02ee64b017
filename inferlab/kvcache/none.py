"""What does decoding cost when nothing is kept and every step reads the whole text again?

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import torch

from inferlab.kvcache.base import CacheShape


class NoCache:
    """Keeps nothing: step n computes keys and values of all positions again, O(S) a token."""

    recomputes = True

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.length = 0

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hand back what came in: [B, G, S, D] of all positions."""
        return keys, values

    def advance(self, num_positions: int) -> None:
        """Nothing was stored."""

    def reset(self) -> None:
        """Nothing to forget."""

    def num_bytes(self) -> int:
        """0: nothing is held between steps."""
        return 0
