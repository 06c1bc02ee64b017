"""Which blocks of the key/value store belong to which sequence?

Bookkeeping alone, without tensors: a store of N blocks of P positions each is lent out block by
block. A sequence owns the blocks of its table in order; a forked one shares those of its parent
until it writes (copy-on-write). Names as in vLLM; Kwon et al., "Efficient Memory Management for
Large Language Model Serving with PagedAttention", SOSP 2023.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inferlab.errors import MeasurementError, UserError

BlockCopy = tuple[int, int]  # (source block, target block): contents to copy before writing


class OutOfBlocks(MeasurementError):
    """More blocks were asked for than are free; nothing was changed."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(
            f"{needed} blocks are needed and {free} are free: free a sequence, "
            "or make the store larger"
        )
        self.needed = needed
        self.free = free


@dataclass(slots=True)
class _Sequence:
    num_tokens: int
    blocks: list[int] = field(default_factory=list)


class BlockManager:
    """Lends `num_blocks` blocks of `block_size` positions to sequences and counts their users."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = _whole(block_size, "block_size")
        self.num_blocks = _whole(num_blocks, "num_blocks")
        self._sequences: dict[Hashable, _Sequence] = {}
        self._users = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: low numbers are lent first

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._free)

    def __contains__(self, seq_id: Hashable) -> bool:
        """Whether `seq_id` is known here, with blocks or none yet."""
        return seq_id in self._sequences

    @property
    def seq_ids(self) -> tuple[Hashable, ...]:
        """The sequences that hold blocks, oldest first."""
        return tuple(self._sequences)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` positions of one sequence take: ceil(num_tokens / P)."""
        return -(-num_tokens // self.block_size)

    def num_tokens(self, seq_id: Hashable) -> int:
        """Positions that `seq_id` holds."""
        return self._of(seq_id).num_tokens

    def lengths(self, seq_ids: Iterable[Hashable]) -> list[int]:
        """Positions that each of `seq_ids` holds; 0 for one that is unknown."""
        known = self._sequences
        return [known[seq_id].num_tokens if seq_id in known else 0 for seq_id in seq_ids]

    def block_table(self, seq_id: Hashable) -> tuple[int, ...]:
        """The blocks of `seq_id` in order: position s lies in entry s // P at place s % P."""
        return tuple(self._of(seq_id).blocks)

    def live_table(self, seq_id: Hashable) -> Sequence[int]:
        """The table of `seq_id` itself, which grows with it: another object after a `free`."""
        return self._of(seq_id).blocks

    def users(self, block: int) -> int:
        """How many sequences have `block` in their tables."""
        return self._users[block]

    def allocate(self, seq_id: Hashable, num_tokens: int) -> tuple[int, ...]:
        """Lend a new sequence the blocks of its first `num_tokens` positions (0: none yet)."""
        if seq_id in self._sequences:
            raise UserError(f"sequence {_shown(seq_id)} holds blocks already: append, or free it")
        needed = self.blocks_for(_whole(num_tokens, "num_tokens", least=0))
        self._check_free(needed)
        self._sequences[seq_id] = _Sequence(num_tokens, [self._take() for _ in range(needed)])
        return self.block_table(seq_id)

    def blocks_to_append(self, growth: Mapping[Hashable, int]) -> int:
        """Free blocks that it takes to append `growth[seq_id]` positions to each sequence."""
        # At every decode step for every sequence: few calls, since the host's time is a step's.
        size, new, writers = self.block_size, 0, {}
        for seq_id, n in growth.items():
            sequence = self._of(seq_id)
            end = sequence.num_tokens + (1 if n == 1 else _whole(n, "n"))
            new += -(-end // size) - len(sequence.blocks)
            if sequence.num_tokens % size and self._users[last := sequence.blocks[-1]] > 1:
                writers[last] = writers.get(last, 0) + 1  # writes into a block that it shares
        # Of the users of a block, all that write take a copy, but for the last one left with it.
        copies = sum(min(count, self._users[last] - 1) for last, count in writers.items())
        return new + copies

    def append(self, seq_id: Hashable, n: int = 1) -> list[BlockCopy]:
        """Make room for `n` positions more; the copies to do before they are written.

        At most one copy: a last block that is partly filled and shared is replaced by one of its
        own.
        """
        return self.append_all({seq_id: n})

    def append_all(self, growth: Mapping[Hashable, int]) -> list[BlockCopy]:
        """`append` for several sequences: all of them, or OutOfBlocks and none."""
        self._check_free(self.blocks_to_append(growth))
        size, copies = self.block_size, []
        for seq_id, n in growth.items():
            sequence = self._sequences[seq_id]
            if sequence.num_tokens % size and self._users[sequence.blocks[-1]] > 1:
                source, target = sequence.blocks[-1], self._take()
                self._users[source] -= 1
                sequence.blocks[-1] = target
                copies.append((source, target))
            sequence.num_tokens += n
            while len(sequence.blocks) * size < sequence.num_tokens:
                sequence.blocks.append(self._take())
        return copies

    def fork(
        self, parent: Hashable, child: Hashable, num_tokens: int | None = None
    ) -> tuple[int, ...]:
        """A second sequence with the same contents, or the first `num_tokens` of them, in the same
        blocks; takes no block.

        Whoever appends first to a block that both hold gets the copy that `append` returns.
        """
        if child in self._sequences:
            raise UserError(f"sequence {_shown(child)} holds blocks already: fork to a new id")
        sequence = self._of(parent)
        shared = sequence.num_tokens if num_tokens is None else _whole(num_tokens, "num_tokens")
        if shared > sequence.num_tokens:
            raise UserError(
                f"sequence {_shown(parent)} holds {sequence.num_tokens} positions, not {shared}: "
                "fork no more than it holds"
            )
        blocks = sequence.blocks[: self.blocks_for(shared)]
        for block in blocks:
            self._users[block] += 1
        self._sequences[child] = _Sequence(shared, blocks)
        return self.block_table(child)

    def free(self, seq_id: Hashable) -> None:
        """Take the blocks of `seq_id` back; those that another sequence uses stay lent."""
        for block in reversed(self._of(seq_id).blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free.append(block)
        del self._sequences[seq_id]

    def problems(self) -> list[str]:
        """What does not hold though it always must; looks at every block. Empty: all is well."""
        found = []
        counted = [0] * self.num_blocks
        for seq_id, sequence in self._sequences.items():
            if len(sequence.blocks) != self.blocks_for(sequence.num_tokens):
                found.append(f"sequence {_shown(seq_id)} has not the blocks that its length needs")
            if len(set(sequence.blocks)) != len(sequence.blocks):
                found.append(f"sequence {_shown(seq_id)} has a block twice in its table")
            for block in sequence.blocks:
                counted[block] += 1
        if counted != self._users:
            found.append("a block has other users than it counts")
        unused = {block for block, users in enumerate(counted) if users == 0}
        if len(self._free) != len(unused) or set(self._free) != unused:
            found.append("a block is neither in use nor free, or both")
        return found

    def _of(self, seq_id: Hashable) -> _Sequence:
        if seq_id not in self._sequences:
            raise UserError(
                f"no sequence {_shown(seq_id)} holds blocks: it was never allocated, or is free"
            )
        return self._sequences[seq_id]

    def _take(self) -> int:
        block = self._free.pop()
        self._users[block] = 1
        return block

    def _check_free(self, needed: int) -> None:
        if needed > self.num_free:
            raise OutOfBlocks(needed, self.num_free)


def _whole(value: int, name: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        shown = str(value)[:40]
        raise UserError(f"{name} must be a whole number of at least {least}, not {shown!r}")
    return value


def _shown(seq_id: Hashable) -> str:
    return repr(seq_id)[:40]
