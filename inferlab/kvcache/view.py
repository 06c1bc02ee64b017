"""Where in memory do attention kernels find the keys and values of each sequence?

A store of N blocks of P positions each, and for every sequence the blocks that are its own, in
order. A dense cache is the same with one block a sequence, so that one kernel serves both.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StoreView:
    """Keys and values of one layer. Position s of sequence b lies in block
    `block_tables[b, s // P]` at place s % P; without tables, in block b.
    """

    keys: torch.Tensor  # [N, G, P, D], any strides with a last one of 1
    values: torch.Tensor  # [N, G, P, D]
    lengths: torch.Tensor  # int32 [B]: positions stored, the newest token included
    block_tables: torch.Tensor | None = None  # int32 [B, W]; None: a block is a whole sequence

    @property
    def block_size(self) -> int:
        """Positions P in a block."""
        return self.keys.shape[2]

    def slots(self, positions: torch.Tensor) -> torch.Tensor:
        """Where positions [B or 1, T] lie: int64 [B T], block times P plus place; no host wait.

        A negative position (a padded column) becomes slot -1: it is stored nowhere. Blocks must
        already be in the tables. A slot is a row of the store seen as [N P, G, D]: dense and paged
        stores are written alike.
        """
        batch, size = self.lengths.shape[0], self.block_size
        positions = positions.to(torch.int64).expand(batch, -1)
        if self.block_tables is None:
            slots = torch.arange(batch, device=positions.device)[:, None] * size + positions
        else:
            found = positions.clamp(min=0)
            slots = self.block_tables.gather(1, found // size).long() * size + found % size
        return torch.where(positions < 0, -1, slots).flatten()
