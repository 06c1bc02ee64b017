"""Which tokens of which requests go into the next step?

Iteration-level scheduling (Yu et al., "Orca", OSDI 2022) over a store of blocks (Kwon et al.,
"PagedAttention", SOSP 2023): requests enter and leave between any two steps, first come first
served. It counts blocks and tokens and holds no tensor; whoever computes a step writes what the
plan says into a cache over the same BlockManager, then calls `computed`.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferlab.errors import MeasurementError, UserError
from inferlab.serving.sequence import Sequence

if TYPE_CHECKING:
    from inferlab.kvcache.blocks import BlockManager
    from inferlab.serving.prefixes import PrefixCache

POLICIES = ("continuous", "static")


class QueueFull(MeasurementError):
    """As many requests wait as may; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Segment:
    """`num_tokens` of the text of `seq` from position `start` on; `samples`: they end it."""

    seq: Sequence
    start: int
    num_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one forward pass reads (single tokens first), and who lost its blocks for it."""

    segments: tuple[Segment, ...]
    preempted: tuple[Sequence, ...] = ()


class Scheduler:
    """Plans steps for sequences that wait and run.

    `max_num_seqs` run at a time and a step has at most `max_num_batched_tokens`. Prompts are read
    in steps of their own while those who decode stand still (`chunk_size` None), or at most
    `chunk_size` tokens of them ride along with each decode step. A prompt enters when its text and
    everybody's next step fit the free blocks. When a text cannot grow, parked prefixes are given
    up, then the last to enter loses its blocks, stands first in line and is read again. Policy
    "static" lets nobody in until the whole batch has finished; who is early leaves its row empty.
    """

    def __init__(
        self,
        manager: BlockManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_len: int,
        chunk_size: int | None = None,
        policy: str = "continuous",
        max_waiting: int | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise UserError(f"unknown policy {str(policy)[:40]!r}; known: {', '.join(POLICIES)}")
        for name, value, least in (
            ("max_num_seqs", max_num_seqs, 1),
            ("max_num_batched_tokens", max_num_batched_tokens, max_num_seqs),
            ("chunk_size", 1 if chunk_size is None else chunk_size, 1),
            ("max_waiting", 0 if max_waiting is None else max_waiting, 0),
        ):
            if not isinstance(value, int) or value < least:
                shown = str(value)[:40]
                raise UserError(f"{name} must be a whole number of at least {least}, not {shown!r}")
        self.manager, self.prefixes = manager, prefixes
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.max_len, self.max_waiting = max_len, max_waiting
        self.chunk_size, self.policy = chunk_size, policy
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # by time of entry
        self.cached_tokens = 0  # taken over from parked prefixes so far
        self._known: dict[str, Sequence] = {}

    @property
    def num_running(self) -> int:
        """Sequences that have entered and not finished."""
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in line, preempted ones included."""
        return len(self.waiting)

    def add(self, seq: Sequence) -> None:
        """Put a sequence at the end of the line: UserError when it can never run, or QueueFull."""
        if seq.seq_id in self._known:
            raise UserError(f"request {str(seq.seq_id)[:40]!r} is being served: give another id")
        most = min(self.max_len, self.manager.num_blocks * self.manager.block_size)
        if seq.max_positions > most:
            raise UserError(
                f"prompt and output take {seq.max_positions} positions and {most} are the most: "
                "shorten the prompt, ask for fewer tokens, or make the cache larger"
            )
        if self.max_waiting is not None and len(self.waiting) - self._rows() >= self.max_waiting:
            raise QueueFull(f"{len(self.waiting)} requests wait already: try again later")
        self._known[seq.seq_id] = seq
        self.waiting.append(seq)

    def cancel(self, seq_id: str) -> bool:
        """End a sequence at once and take its blocks back; False when it is not being served."""
        if known := seq_id in self._known:
            self.finish(self._known[seq_id], "cancelled")
        return known

    def finish(self, seq: Sequence, reason: str) -> None:
        """Take a sequence out, for a reason."""
        del self._known[seq.seq_id]
        if seq.state == "running":
            self.running.remove(seq)
            if self.prefixes is not None:
                self.prefixes.park(seq)
            self.manager.free(seq.seq_id)
        else:
            self.waiting.remove(seq)
        seq.state, seq.finish_reason = "finished", reason

    def computed(self, plan: StepPlan) -> None:
        """Note that what `plan` says is in the cache now."""
        for segment in plan.segments:
            segment.seq.num_computed += segment.num_tokens
            if self.prefixes is not None and segment.samples and segment.num_tokens > 1:
                self.prefixes.park(segment.seq)

    def schedule(self) -> StepPlan:
        """The next step; without segments only when nothing waits or runs."""
        self._admit()
        preempted: list[Sequence] = []
        segments: list[Segment] = []
        while self.running and not segments:
            if self.chunk_size is None:
                segments = self._reads([], self.max_num_batched_tokens)
            if not segments:
                segments = self._decodes(preempted)
                if self.chunk_size is not None:
                    left = self.max_num_batched_tokens - len(segments)
                    segments += self._reads(segments, min(left, self.chunk_size))
            if not segments:  # nobody has room to begin
                self._preempt(preempted)
        return StepPlan(tuple(segments), tuple(preempted))

    def _rows(self) -> int:
        """How many may enter now as far as rows go."""
        closed = self.policy == "static" and self.running
        return 0 if closed else self.max_num_seqs - len(self.running)

    def _admit(self) -> None:
        """Let those in who have room, in order."""
        rows = min(self._rows(), len(self.waiting))
        promised = sum(map(self._missing, self.running)) if rows else 0  # to those who run
        for _ in range(rows):
            seq = self.waiting[0]
            shared = 0 if self.prefixes is None else self.prefixes.take(seq)
            if not shared:
                self.manager.allocate(seq.seq_id, 0)
            needed = self._missing(seq)
            if not self._find_room(promised + needed):
                self.manager.free(seq.seq_id)
                return
            promised += needed
            self.cached_tokens += shared
            seq.num_computed, seq.state = shared, "running"
            self.running.append(self.waiting.popleft())

    def _missing(self, seq: Sequence) -> int:
        """Blocks that `seq` lacks for its text and one step more."""
        wanted = min(seq.num_tokens + 1, seq.max_positions)
        held = self.manager.num_tokens(seq.seq_id)
        return self.manager.blocks_for(wanted) - self.manager.blocks_for(held)

    def _decodes(self, preempted: list[Sequence]) -> list[Segment]:
        """One token of everybody who has been read; the last to enter make room for the rest."""
        while True:
            seqs = [seq for seq in self.running if seq.is_decoding]
            growth = {seq.seq_id: 1 for seq in seqs}
            if self._find_room(self.manager.blocks_to_append(growth)):
                return [Segment(seq, seq.num_computed, 1, True) for seq in seqs]
            self._preempt(preempted)

    def _reads(self, planned: list[Segment], num_tokens: int) -> list[Segment]:
        """As much of the unread texts as `num_tokens` and the blocks allow, in order of entry."""
        found, needed = [], self.manager.blocks_to_append({s.seq.seq_id: 1 for s in planned})
        for seq in self.running:
            if num_tokens < 1 or seq.is_decoding:
                continue
            count = min(seq.num_tokens - seq.num_computed, num_tokens)
            needed += self.manager.blocks_to_append({seq.seq_id: count})
            if not self._find_room(needed):
                break
            is_last = seq.num_computed + count == seq.num_tokens
            found.append(Segment(seq, seq.num_computed, count, is_last))
            num_tokens -= count
        return found

    def _find_room(self, num_blocks: int) -> bool:
        """Whether so many blocks are free, parked prefixes given up if need be."""
        if num_blocks > self.manager.num_free and self.prefixes is not None:
            self.prefixes.give_up(num_blocks)
        return num_blocks <= self.manager.num_free

    def _preempt(self, preempted: list[Sequence]) -> None:
        """The last to enter gives its blocks back and stands first in line."""
        seq = self.running.pop()
        self.manager.free(seq.seq_id)
        if seq.num_computed:
            preempted.append(seq)
        seq.num_computed, seq.state = 0, "waiting"
        self.waiting.appendleft(seq)
