"""How are tokens of many sequences read in one pass when none of them is padded?

All of them stand in one row [1, N]: products do not mind whose token a column is, and attention
is done segment by segment, each over its own sequence (as if by a block-diagonal mask, without
one). Single tokens attend together, as a batch.
Letters: N tokens of the pass, G key/value heads, R query heads each, D head size, V vocabulary.
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from inferlab.kernels.attention import attend
from inferlab.kvcache.paged import PagedCache

if TYPE_CHECKING:
    from inferlab.models.decoder import Decoder


class _Chunk(NamedTuple):
    """Several tokens of one sequence: their columns in the row, and its past."""

    columns: slice
    blocks: torch.Tensor | None  # [W] where its S positions lie; None: it has no past
    allowed: torch.Tensor | None  # [1, 1, T, S] which of them a token may look at


class PackedPass:
    """One pass of a Decoder over the next tokens of several sequences of `cache`.

    `segments` are pairs (sequence, number of tokens) in the order of the row; those in front that
    have one token attend together, so put decodes first. Give the decoder `positions` and, as
    `rows`, the columns whose logits are wanted (`ends`: the last of each). Making it makes room:
    OutOfBlocks or CacheTooSmall before anything is changed.
    """

    recomputes = False

    def __init__(self, cache: PagedCache, segments: Sequence[tuple[Hashable, int]]) -> None:
        seq_ids, counts = zip(*segments, strict=True)
        self.num_single = next((i for i, n in enumerate(counts) if n > 1), len(counts))
        self.cache = cache
        cache.select(seq_ids)
        starts = cache.extend(counts)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self.ends = (np.cumsum(counts) - 1).tolist()
        where = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        blocks = [cache.tables.host[row][w // cache.block_size] for row, w in enumerate(where)]
        self._place(np.concatenate(where), np.concatenate(blocks))
        rows = range(self.num_single, len(counts))
        self._chunks = [self._chunk(row, starts[row], ends[row]) for row in rows]
        if self.num_single:
            cache.narrow(self.num_single)
        # The decoder makes room for `length` + N positions in its rotary table.
        self.length = max(ends) - sum(counts)

    def _place(self, where: np.ndarray, blocks: np.ndarray) -> None:
        """Positions of the N tokens and where in the store they go, on the device."""
        size = self.cache.block_size
        found = np.stack((where, blocks * size + where % size))
        positions, slots = torch.from_numpy(found).to(self.cache.device)
        self.positions = positions[None]  # [1, N]
        self._into = self.cache.rows_of(slots)

    def _chunk(self, row: int, start: int, end: int) -> _Chunk:
        last = self.ends[row] + 1
        columns = slice(last - (end - start), last)
        if not start:
            return _Chunk(columns, None, None)
        cache, width = self.cache, -(-end // self.cache.block_size)
        blocks = torch.from_numpy(cache.tables.host[row][:width]).to(cache.device).long()
        allowed = torch.ones(end - start, end, dtype=torch.bool, device=cache.device).tril(start)
        return _Chunk(columns, blocks, allowed[None, None])

    def begin(self, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """The mask for the attention of single tokens; room was made when this was."""
        return self.cache.decode_mask() if self.num_single else None

    def attend(
        self,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store [1, G, N, D] and attend: queries [1, N, G R, D] -> [1, N, G R D]."""
        cache, stores = self.cache, (self.cache.keys[layer], self.cache.values[layer])
        cache.write(layer, (keys, values), self._into, None)
        mixed = []
        if self.num_single:
            single = queries[0, : self.num_single, None]  # [B, 1, G R, D]
            mixed.append(cache.attend_stored(layer, single, mask).transpose(0, 1))
        for columns, blocks, allowed in self._chunks:
            if blocks is None:  # nothing before it: its keys are at hand
                own = keys[:, :, columns], values[:, :, columns]
            else:
                own = (_gathered(store, blocks, allowed.shape[-1]) for store in stores)
            mixed.append(attend(queries[:, columns], *own, allowed))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)

    def advance(self, num_positions: int) -> None:
        """Counted when room was made."""


def _gathered(store: torch.Tensor, blocks: torch.Tensor, length: int) -> torch.Tensor:
    """store [N, G, P, D], the blocks [W] of one sequence -> a copy [1, G, length, D]."""
    return store[blocks].transpose(0, 1).flatten(1, 2)[None, :, :length]


@torch.inference_mode()
def pack_prompts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], cache: PagedCache
) -> torch.Tensor:
    """Read whole prompts, without padding, as sequences 0 to B - 1 of `cache`, which is reset.

    Logits [B, V] of what follows each.
    """
    cache.reset()
    packed = PackedPass(cache, [(index, len(prompt)) for index, prompt in enumerate(prompts)])
    text = [token for prompt in prompts for token in prompt]
    token_ids = torch.tensor([text], device=cache.device)
    logits = decoder(token_ids, packed, packed.positions, rows=packed.ends)
    cache.select(range(len(prompts)))
    return logits
