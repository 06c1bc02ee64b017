"""What need not be read again because another request began with the same tokens?

Texts that were read stay parked in the store, as sequences of their own that share blocks with
whoever is still running. A new one takes over the longest beginning that it has in common with a
parked one, in whole blocks. Parked texts are given up, least recently used first, when their
blocks are wanted. Every lookup compares with every parked text: fine for some dozens of them.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferlab.kvcache.blocks import BlockManager
    from inferlab.serving.sequence import Sequence

_Key = tuple[str, int]


class PrefixCache:
    """At most `max_parked` beginnings of texts over the blocks of `manager`."""

    def __init__(self, manager: BlockManager, max_parked: int = 64) -> None:
        self.manager = manager
        self.max_parked = max_parked
        self._parked: dict[_Key, list[int]] = {}  # token ids; least recently used first
        self._count = 0

    @property
    def num_parked(self) -> int:
        """Texts that are parked."""
        return len(self._parked)

    def take(self, seq: Sequence) -> int:
        """Give `seq`, which holds no blocks yet, those of the longest beginning that is parked.

        Returns its positions, a multiple of the block size; 0: none, and nothing was done. At
        least one token of the text is left to read.
        """
        text = seq.text_ids[: self._whole(seq.num_tokens - 1)]
        best, longest = None, 0
        for key, parked in self._parked.items():
            common = self._common(text, parked)
            if common > longest:
                best, longest = key, common
        if best is not None:
            self.manager.fork(best, seq.seq_id, longest)
            self._parked[best] = self._parked.pop(best)  # now the most recently used
        return longest

    def park(self, seq: Sequence) -> None:
        """Keep the whole blocks of what has been read of `seq`, which goes on as it was."""
        text = seq.text_ids[: self._whole(seq.num_computed)]
        if not text:
            return
        for key, parked in list(self._parked.items()):
            common = self._common(text, parked)
            if common == len(text):  # known already
                self._parked[key] = self._parked.pop(key)
                return
            if common == len(parked):  # this one goes further
                self._drop(key)
        if len(self._parked) >= self.max_parked:
            self._drop(next(iter(self._parked)))
        self._count += 1
        key = ("parked", self._count)
        self.manager.fork(seq.seq_id, key, len(text))
        self._parked[key] = text

    def give_up(self, num_blocks: int) -> None:
        """Drop parked texts until `num_blocks` blocks are free; none where that is out of reach.

        A block that somebody else uses too is not freed by dropping what is parked.
        """
        holders = Counter(b for key in self._parked for b in self.manager.live_table(key))
        alone = sum(self.manager.users(block) == count for block, count in holders.items())
        if self.manager.num_free + alone < num_blocks:
            return
        while self.manager.num_free < num_blocks:
            self._drop(next(iter(self._parked)))

    def _drop(self, key: _Key) -> None:
        del self._parked[key]
        self.manager.free(key)

    def _whole(self, num_tokens: int) -> int:
        """Positions in whole blocks."""
        return num_tokens // self.manager.block_size * self.manager.block_size

    def _common(self, first: list[int], second: list[int]) -> int:
        """Length of the common beginning of two texts, in whole blocks."""
        size, shared = self.manager.block_size, 0
        end = min(len(first), len(second))
        while shared < end and first[shared : shared + size] == second[shared : shared + size]:
            shared += size
        return shared
