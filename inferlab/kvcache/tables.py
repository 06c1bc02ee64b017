"""Which blocks hold the sequences of a pass, on the host and on the device?

A row of the table is a sequence of the pass. From one step to the next hardly an entry changes:
only those that did are sent.
Letters: B rows, W entries of a row.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class BlockTables:
    """int32 [B, W] twice, `host` and `device`; the device's stays at its address."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.host = np.zeros((rows, width), dtype=np.int32)
        self.device = torch.zeros((rows, width), dtype=torch.int32, device=device)
        # Whose table a row holds, as its owner's own list, and how many of its blocks were full.
        self._listed: list[tuple[Sequence[int] | None, int]] = [(None, 0)] * rows

    def update(
        self, tables: Sequence[Sequence[int]], held: Sequence[int], full: Sequence[int]
    ) -> None:
        """Row i becomes `tables[i]`, a list that its owner goes on changing in place.

        Its first `held[i]` blocks were full before this pass and have not changed since the row
        was listed; `full[i]` are full after it.
        """
        changed = []
        for row, table in enumerate(tables):
            listed, listed_full = self._listed[row]
            # The block that is written next may have been replaced by a copy.
            first = min(held[row], listed_full) if listed is table else 0
            for column in range(first, len(table)):
                if self.host[row, column] != table[column]:
                    self.host[row, column] = table[column]
                    changed.append((row, column, table[column]))
            self._listed[row] = (table, full[row])
        if changed:
            found = torch.tensor(changed).T.to(self.device.device, non_blocking=True)
            self.device.index_put_((found[0], found[1]), found[2].int())
