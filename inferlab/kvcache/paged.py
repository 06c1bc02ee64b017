"""How are sequences of any length kept in one store without reserving for the longest?

Keys and values lie in blocks of P positions; a table says which blocks are a sequence's. Attention
over a block table: on a GPU a kernel that follows it, elsewhere a copy of the blocks (a gather).
Letters: B sequences, T new tokens, G key/value heads, R query heads each, D head size, N blocks,
W entries of a table.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch

from inferlab.errors import UserError
from inferlab.kernels import why_unavailable
from inferlab.kernels.attention import attend
from inferlab.kvcache.base import CacheShape
from inferlab.kvcache.blocks import BlockManager, OutOfBlocks
from inferlab.kvcache.view import StoreView

BLOCK_SIZE = 16  # positions; the default of vLLM
KERNELS = ("auto", "gather", "triton")


class PagedCache:
    """[num_blocks, G, P, D] a layer, lent out block by block.

    The rows of a forward pass are the sequences that `select` names, by default 0 to B - 1, and
    may differ in length: padding that `generate` puts in front of a prompt is not stored.
    `num_blocks` defaults to what B sequences of the whole capacity take. Give fewer for a budget;
    then OutOfBlocks is raised before anything of a pass is written.
    """

    recomputes = False

    def __init__(
        self,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device | str,
        block_size: int = BLOCK_SIZE,
        num_blocks: int | None = None,
        kernel: str = "auto",
    ) -> None:
        self.shape = shape
        self.device = torch.device(device)
        self.kernel = _chosen(kernel, self.device)
        width = -(-shape.capacity // block_size) if block_size else 0
        blocks = shape.batch_size * width if num_blocks is None else num_blocks
        self.manager = BlockManager(blocks, block_size)
        size = (self.manager.num_blocks, shape.num_kv_heads, block_size, shape.head_dim)
        # Filled: the pages must exist before a step is timed, and what is read beyond the end of
        # a sequence must be finite, or it would spoil a sum although its weight is 0.
        self.keys, self.values = (
            [torch.zeros(size, dtype=dtype, device=self.device) for _ in range(shape.num_layers)]
            for _ in range(2)
        )
        rows = shape.batch_size
        self._host_tables = np.zeros((rows, width), dtype=np.int32)
        # Kept at their addresses: a CUDA graph holds on to them.
        self._tables = torch.zeros((rows, width), dtype=torch.int32, device=self.device)
        self._lengths = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self._targets = torch.zeros((2, rows), dtype=torch.int64, device=self.device)
        self._heads = torch.arange(shape.num_kv_heads, device=self.device)[:, None]
        # Which sequence's table a row holds, as the manager's own object, and up to which position.
        self._listed: list[tuple[Sequence[int] | None, int]] = [(None, 0)] * rows
        self.reset()

    @property
    def block_size(self) -> int:
        """Positions in a block."""
        return self.manager.block_size

    @property
    def length(self) -> int:
        """Positions of the longest selected sequence."""
        return max(self.lengths())

    def lengths(self) -> list[int]:
        """Positions of each selected sequence; 0 for one that is new."""
        return self.manager.lengths(self._selected)

    def select(self, seq_ids: Sequence[Hashable]) -> None:
        """Make these sequences, new or known, the rows of the passes that follow."""
        if not seq_ids or len(seq_ids) > self.shape.batch_size:
            raise UserError(
                f"{len(seq_ids)} sequences do not fit the {self.shape.batch_size} rows of this "
                "cache: select 1 or more, or make it for a larger batch"
            )
        if len(set(seq_ids)) < len(seq_ids):
            raise UserError("a sequence is selected twice: one row each")
        self._selected = tuple(seq_ids)

    def fork(self, parent: Hashable, child: Hashable) -> None:
        """A second sequence with the same past, in the same blocks until one of them writes."""
        self.manager.fork(parent, child)

    def free(self, seq_id: Hashable) -> None:
        """Give the blocks of a sequence back."""
        self.manager.free(seq_id)

    def begin(self, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Make room for T tokens a row, before the first layer; returns the mask for attention.

        `positions` [B or 1, T] as given to the decoder. A mask says that prompts are padded on the
        left: how many tokens each has then comes from its last position. OutOfBlocks or
        CacheTooSmall before anything is changed.
        """
        new, held = positions.shape[1], self.lengths()
        if positions.shape[0] not in (1, len(held)):
            raise UserError(f"{positions.shape[0]} rows for {len(held)} sequences: select them")
        counts = [new] * len(held)
        if new > 1 and mask is not None:
            ends = (positions[:, -1] + 1).tolist()
            counts = [end - start for end, start in zip(ends, held, strict=True)]
        self._grow(held, counts)
        if new == 1:
            slots = self.view(0).slots(self._lengths[: len(held), None] - 1)
            self._into, self._kept = self._targets[:, : len(held)], None
            self._into.copy_(torch.stack((slots // self.block_size, slots % self.block_size)))
            return self.decode_mask()
        columns = torch.arange(new, device=self.device)
        pads = torch.tensor([new - count for count in counts], device=self.device)[:, None]
        starts = torch.tensor(held, device=self.device)[:, None]
        places = torch.where(columns < pads, -1, starts + columns - pads)  # [B, T]
        slots = self.view(0).slots(places)
        self._kept = slots >= 0 if any(count < new for count in counts) else None
        slots = slots if self._kept is None else slots[self._kept]
        self._into = slots // self.block_size, slots % self.block_size
        self._has_past = any(held)
        if not self._has_past:
            return mask
        total = torch.arange(self.length, device=self.device)
        return (total <= places.clamp(min=0)[:, :, None]).unsqueeze(1)  # [B, 1, T, S]

    def attend(
        self,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store [B, G, T, D] and attend: queries [B, T, G R, D] -> [B, T, G R D].

        `mask` is what `begin` returned.
        """
        self._write(self.keys[layer], keys)
        self._write(self.values[layer], values)
        if queries.shape[1] > 1 and not self._has_past:  # the prompt is at hand: nothing to look up
            return attend(queries, keys, values, mask)
        return self.attend_stored(layer, queries, mask)

    def attend_stored(
        self, layer: int, queries: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention over what the store holds: queries [B, T, G R, D] -> [B, T, G R D]."""
        batch, new = queries.shape[:2]
        if new == 1 and self.kernel == "triton":
            from inferlab.kernels.split_kv import decode_attention

            return decode_attention(queries[:, 0], self.view(layer)).reshape(batch, 1, -1)
        return attend(queries, *self.gathered(layer), mask)

    def gathered(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, G, S, D] of the selected sequences, S those of the longest."""
        return self._read(self.keys[layer]), self._read(self.values[layer])

    def view(self, layer: int) -> StoreView:
        """Where kernels find the layer; shapes that never change where a kernel reads it."""
        rows = len(self._selected)
        width = self._tables.shape[1] if self.kernel == "triton" else self._width
        tables = self._tables[:rows, :width]
        return StoreView(self.keys[layer], self.values[layer], self._lengths[:rows], tables)

    def advance(self, num_positions: int) -> None:
        """Counted when room was made."""

    def reset(self) -> None:
        """Free every sequence; rows 0 to B - 1 are selected, and new."""
        for seq_id in self.manager.seq_ids:
            self.free(seq_id)
        self._selected: tuple[Hashable, ...] = tuple(range(self.shape.batch_size))
        self._width = 0

    def num_bytes(self) -> int:
        """Bytes of the whole store, lent out or not."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def used_bytes(self) -> int:
        """Bytes of the blocks that are lent out."""
        used = self.manager.num_blocks - self.manager.num_free
        return self.num_bytes() // self.manager.num_blocks * used

    def extend(self, counts: Sequence[int]) -> list[int]:
        """Room for counts[i] >= 1 positions more of each selected sequence; where they begin.

        What `begin` does for a pass of equal rows. OutOfBlocks or CacheTooSmall, nothing changed.
        """
        held = self.lengths()
        self._grow(held, counts)
        return held

    def narrow(self, rows: int) -> None:
        """From now on attend only to the first `rows` of the selected sequences."""
        self._selected, self._ends = self._selected[:rows], self._ends[:rows]
        self._width, self._chosen = self.manager.blocks_for(max(self._ends)), None

    def host_table(self, row: int) -> np.ndarray:
        """int32 [W]: the block numbers of a selected sequence, on the host."""
        return self._host_tables[row]

    def _grow(self, held: Sequence[int], counts: Sequence[int]) -> None:
        """Blocks for `counts` positions more in each row; tables, lengths, copies of shared."""
        manager, ends = self.manager, [a + b for a, b in zip(held, counts, strict=True)]
        self.shape.check_room(max(ends), "paged")
        new = [seq_id for seq_id in self._selected if seq_id not in manager]
        for seq_id in new:
            manager.allocate(seq_id, 0)
        try:
            copies = manager.append_all(dict(zip(self._selected, counts, strict=True)))
        except OutOfBlocks:
            for seq_id in new:
                manager.free(seq_id)
            raise
        if copies:
            sources, targets = (
                torch.tensor(blocks, device=self.device) for blocks in zip(*copies, strict=True)
            )
            for store in (*self.keys, *self.values):
                store[targets] = store[sources]
        self._list_tables(held, ends)
        lengths = torch.tensor(ends, dtype=torch.int32)
        self._lengths[: len(ends)].copy_(lengths, non_blocking=True)
        self._ends, self._width = ends, manager.blocks_for(max(ends))
        self._chosen = None

    def _list_tables(self, held: Sequence[int], ends: Sequence[int]) -> None:
        """Bring the rows of the tables up to date: only entries that changed are sent."""
        changed = []
        for row, (seq_id, start, end) in enumerate(zip(self._selected, held, ends, strict=True)):
            table = self.manager.live_table(seq_id)
            listed, listed_end = self._listed[row]
            # Full blocks that were listed have not changed; the one written next may have.
            first = min(start, listed_end) // self.block_size if listed is table else 0
            for column in range(first, len(table)):
                if self._host_tables[row, column] != table[column]:
                    self._host_tables[row, column] = table[column]
                    changed.append((row, column, table[column]))
            self._listed[row] = (table, end)
        if changed:
            found = torch.tensor(changed).T.to(self.device, non_blocking=True)
            self._tables.index_put_((found[0], found[1]), found[2].int())

    def decode_mask(self) -> torch.Tensor | None:
        """[B, 1, 1, S], 0 or -inf where a row ends before the longest; None where none does."""
        rows, longest = len(self._ends), max(self._ends)
        self._has_past = True
        if self.kernel == "triton" or min(self._ends) == longest:
            return None
        beyond = torch.arange(longest, device=self.device) >= self._lengths[:rows, None]
        mask = torch.zeros(beyond.shape, dtype=self.keys[0].dtype, device=self.device)
        return mask.masked_fill_(beyond, float("-inf"))[:, None, None, :]

    def _write(self, store: torch.Tensor, new: torch.Tensor) -> None:
        """Put [B, G, T, D] into the blocks and places of this pass."""
        rows = new.transpose(1, 2).flatten(0, 1)  # [B T, G, D]
        blocks, places = self._into
        store[blocks, :, places] = rows if self._kept is None else rows[self._kept]

    def _read(self, store: torch.Tensor) -> torch.Tensor:
        """[N, G, P, D] -> [B, G, S, D]: the blocks of each row, copied together in one pass."""
        rows, longest = len(self._ends), max(self._ends)
        if self._width == 1:  # a block holds a whole sequence: copy no more than is used,
            blocks = self._host_tables[:rows, 0]
            used = store.narrow(2, 0, longest)
            if (np.diff(blocks) == 1).all():  # or nothing, where they follow each other: as dense
                return used.narrow(0, int(blocks[0]), rows)
            return used.index_select(0, self._tables[:rows, 0])
        if self._chosen is None:  # once a pass: rows of the store seen as [N G, P D]
            tables = self._tables[:rows, None, : self._width]
            self._chosen = (tables * self.shape.num_kv_heads + self._heads).flatten()
        found = store.flatten(0, 1).flatten(1).index_select(0, self._chosen)  # [B G W, P D]
        size = (rows, self.shape.num_kv_heads, self._width * self.block_size, -1)
        return found.view(size).narrow(2, 0, longest)


def _chosen(kernel: str, device: torch.device) -> str:
    """ "auto" made definite; a UserError where a kernel was asked for that cannot run."""
    if kernel not in KERNELS:
        raise UserError(f"unknown kernel {str(kernel)[:40]!r}; known: {', '.join(KERNELS)}")
    reason = why_unavailable(device)
    if kernel == "triton" and reason:
        raise UserError(f"paged attention by a Triton kernel: {reason}; or kernel='gather'")
    if kernel == "auto":
        return "triton" if device.type == "cuda" and not reason else "gather"
    return kernel
