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
from inferlab.kvcache.tables import BlockTables
from inferlab.kvcache.view import StoreView

BLOCK_SIZE = 16  # positions; the default of vLLM
KERNELS = ("auto", "gather", "triton")
Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


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
        # The same stores as rows [N G P, D] to write, and as blocks [N G, P D] to copy from.
        stores = list(zip(self.keys, self.values, strict=True))
        self._rows, self._blocks = (
            [(keys.view(-1, size), values.view(-1, size)) for keys, values in stores]
            for size in (shape.head_dim, block_size * shape.head_dim)
        )
        rows, heads = shape.batch_size, shape.num_kv_heads
        self.tables = BlockTables(rows, width, self.device)
        # Kept at their addresses, as the tables are: a CUDA graph holds on to them.
        self._lengths = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self._targets = torch.zeros(rows * heads, dtype=torch.int64, device=self.device)
        self._heads = torch.arange(heads, device=self.device)[:, None]
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
            self._into, self._kept = self._targets[: len(held) * len(self._heads)], None
            self._into.copy_(self.rows_of(slots))
            return self.decode_mask()
        columns = torch.arange(new, device=self.device)
        pads = torch.tensor([new - count for count in counts], device=self.device)[:, None]
        starts = torch.tensor(held, device=self.device)[:, None]
        places = torch.where(columns < pads, -1, starts + columns - pads)  # [B, T]
        slots = self.view(0).slots(places)
        self._kept = slots >= 0 if any(count < new for count in counts) else None
        self._into = self.rows_of(slots if self._kept is None else slots[self._kept])
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
        self.write(layer, (keys, values), self._into, self._kept)
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

    def gathered(self, layer: int) -> Pair:
        """Keys and values [B, G, S, D] of the selected sequences, S those of the longest."""
        if self._width == 1:
            return self._used(self.keys[layer]), self._used(self.values[layer])
        if self._chosen is None:  # once a pass
            tables = self.tables.device[: len(self._ends), None, : self._width]
            self._chosen = (tables * len(self._heads) + self._heads).flatten()
        shape = (len(self._ends), len(self._heads), self._width * self.block_size, -1)
        keys, values = (
            blocks.index_select(0, self._chosen).view(shape).narrow(2, 0, max(self._ends))
            for blocks in self._blocks[layer]
        )
        return keys, values

    def view(self, layer: int) -> StoreView:
        """Where kernels find the layer; shapes that never change where a kernel reads it."""
        rows = len(self._selected)
        tables = self.tables.device[:rows]
        tables = tables if self.kernel == "triton" else tables[:, : self._width]
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

    def write(self, layer: int, new: Pair, into: torch.Tensor, kept: torch.Tensor | None) -> None:
        """Store keys and values [B, G, T, D] at the rows `into`, see `rows_of`, of those of the
        B T tokens for which `kept` is True; None: of all.
        """
        for rows, one in zip(self._rows[layer], new, strict=True):
            one = one.transpose(1, 2)  # [B, T, G, D]
            one = one if kept is None else one.flatten(0, 1)[kept]
            rows.index_copy_(0, into, one.reshape(-1, rows.shape[1]))

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
        tables = [manager.live_table(seq_id) for seq_id in self._selected]
        size = self.block_size
        self.tables.update(tables, [n // size for n in held], [n // size for n in ends])
        lengths = torch.tensor(ends, dtype=torch.int32)
        self._lengths[: len(ends)].copy_(lengths, non_blocking=True)
        self._ends, self._width = ends, manager.blocks_for(max(ends))
        self._chosen = None

    def decode_mask(self) -> torch.Tensor | None:
        """[B, 1, 1, S], 0 or -inf where a row ends before the longest; None where none does."""
        rows, longest = len(self._ends), max(self._ends)
        self._has_past = True
        if self.kernel == "triton" or min(self._ends) == longest:
            return None
        beyond = torch.arange(longest, device=self.device) >= self._lengths[:rows, None]
        mask = torch.zeros(beyond.shape, dtype=self.keys[0].dtype, device=self.device)
        return mask.masked_fill_(beyond, float("-inf"))[:, None, None, :]

    def rows_of(self, slots: torch.Tensor) -> torch.Tensor:
        """int64 [M G]: the rows of M slots, head by head, in a store seen as [N G P, D]."""
        size, heads = self.block_size, self._heads
        return ((slots // size * len(heads) + heads) * size + slots % size).T.flatten()

    def _used(self, store: torch.Tensor) -> torch.Tensor:
        """[N, G, P, D] -> [B, G, S, D] where a block holds a whole sequence.

        No more is copied than is used, or nothing, where the blocks follow each other: as dense.
        """
        rows, blocks = len(self._ends), self.tables.host[: len(self._ends), 0]
        used = store.narrow(2, 0, max(self._ends))
        if (np.diff(blocks) == 1).all():
            return used.narrow(0, int(blocks[0]), rows)
        return used.index_select(0, self.tables.device[:rows, 0])


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
