"""How many sequences run at a time in a store of a given size? An emulation, step by step.

Requests stand in line; one enters when the policy finds room, every running sequence gets one token
a step, and the store is counted, not held. Contiguous policies place a request by first fit, so
that room which is there but in pieces is seen. Time is counted in steps: prefills take none.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from inferlab.errors import UserError
from inferlab.lengths import Lengths
from inferlab.pagingcost import POLICIES, reserved_at_entry


@dataclass(frozen=True, slots=True)
class ServerRun:
    """Means over the steps during which requests were waiting: the store was as full as can be."""

    num_seqs: float  # running
    held_ratio: float  # positions that hold a token, over the store
    reserved_ratio: float  # positions reserved, over the store
    stranded_ratio: float  # free positions that the next in line could not use, over the store
    steps: int
    num_preempted: int
    recomputed_tokens: int

    @property
    def waste_ratio(self) -> float:
        """Share of the reserved positions that hold nothing."""
        return 1 - self.held_ratio / self.reserved_ratio


class FirstFit:
    """Contiguous runs of positions in a store; each goes into the first gap that is wide enough."""

    def __init__(self, size: int) -> None:
        self._gaps = [(0, size)]  # (start, end), in order, none touching another
        self.num_free = size

    def place(self, size: int) -> int | None:
        """Start of a run of `size` positions, or None when no gap is that wide."""
        for index, (start, end) in enumerate(self._gaps):
            if end - start >= size:
                self._gaps[index : index + 1] = [(start + size, end)] if end - start > size else []
                self.num_free -= size
                return start
        return None

    def release(self, start: int, size: int) -> None:
        """Give a run back; gaps that then touch become one."""
        self.num_free += size
        gaps = sorted([*self._gaps, (start, start + size)])
        self._gaps = gaps[:1]
        for low, high in gaps[1:]:
            if low == self._gaps[-1][1]:
                self._gaps[-1] = (self._gaps[-1][0], high)
            else:
                self._gaps.append((low, high))

    @property
    def widest(self) -> int:
        """Positions of the widest gap."""
        return max((end - start for start, end in self._gaps), default=0)


@dataclass(slots=True)
class _Running:
    request: Lengths
    written: int = 0  # tokens of the answer
    start: int = 0
    size: int = 0  # positions reserved

    @property
    def text_len(self) -> int:
        return self.request.prompt_len + self.written

    @property
    def held(self) -> int:
        """Positions while it runs: the newest token is fed, and stored, in the next step."""
        return self.text_len - 1

    @property
    def is_done(self) -> bool:
        return self.written >= self.request.output_len


def serve(
    requests: Sequence[Lengths],
    store_tokens: int,
    policy: str,
    max_len: int,
    block_size: int = 16,
) -> ServerRun:
    """Serve all requests in order from a store of `store_tokens` positions.

    Paged: a sequence that cannot grow takes the blocks of the last that entered, which goes back
    to the head of the line with what it has written. A request that no empty store holds is
    refused before anything is served.
    """
    if policy not in POLICIES:
        raise UserError(f"unknown policy {str(policy)[:40]!r}; known: {', '.join(POLICIES)}")
    if policy == "paged":
        return _Paged(store_tokens, block_size).run(requests)
    return _Contiguous(store_tokens, policy, max_len).run(requests)


class _Server:
    """The loop that both kinds of store share."""

    def __init__(self, store_tokens: int) -> None:
        self.store_tokens = store_tokens
        self.running: list[_Running] = []
        self.waiting: deque[_Running] = deque()
        self.preempted = self.recomputed = 0

    def run(self, requests: Sequence[Lengths]) -> ServerRun:
        for request in requests:
            if self.needed(request, request.output_len - 1) > self.store_tokens:
                raise UserError(
                    f"a request of {sum(request)} tokens does not fit a store of "
                    f"{self.store_tokens}: make the store larger"
                )
        self.waiting = deque(_Running(request) for request in requests)
        rows, steps = [], 0
        while self.waiting or self.running:
            while self.waiting and self.enter(self.waiting[0]):
                one = self.waiting.popleft()
                one.written += 1  # by its prefill
                self.running.append(one)
                self.let_go()
            if not self.running:
                continue
            self.make_room()
            for one in self.running:
                one.written += 1
            if self.waiting:  # what is left at the end is no full store
                rows.append(self.counted())
            steps += 1
            self.let_go()
        if not rows:
            raise UserError("no request ever waited: give more requests or a smaller store")
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        shares = [value / self.store_tokens for value in means[1:]]
        return ServerRun(means[0], *shares, steps, self.preempted, self.recomputed)

    def let_go(self) -> None:
        for one in [one for one in self.running if one.is_done]:
            self.leave(one)
            self.running.remove(one)

    def counted(self) -> tuple[int, int, int, int]:
        held = sum(one.held for one in self.running)
        reserved = sum(one.size for one in self.running)
        return len(self.running), held, reserved, self.stranded()


class _Contiguous(_Server):
    def __init__(self, store_tokens: int, policy: str, max_len: int) -> None:
        super().__init__(store_tokens)
        self.policy, self.max_len, self.gaps = policy, max_len, FirstFit(store_tokens)

    def needed(self, request: Lengths, _: int) -> int:
        return self.entry_size(request)

    def entry_size(self, request: Lengths) -> int:
        return int(
            reserved_at_entry(self.policy, request.prompt_len, request.output_len, self.max_len)
        )

    def enter(self, one: _Running) -> bool:
        size = self.entry_size(one.request)
        start = self.gaps.place(size)
        if start is None:
            return False
        one.start, one.size = start, size
        return True

    def make_room(self) -> None:
        """Reserved at entry."""

    def leave(self, one: _Running) -> None:
        self.gaps.release(one.start, one.size)

    def stranded(self) -> int:
        """Free, and enough together for the next in line, but in pieces."""
        wide = self.gaps.num_free >= self.entry_size(self.waiting[0].request)
        return self.gaps.num_free if wide else 0


class _Paged(_Server):
    def __init__(self, store_tokens: int, block_size: int) -> None:
        super().__init__(store_tokens // block_size * block_size)
        self.block_size, self.free = block_size, self.store_tokens

    def needed(self, request: Lengths, written: int) -> int:
        return self.rounded(request.prompt_len + written)

    def rounded(self, tokens: int) -> int:
        return -(-tokens // self.block_size) * self.block_size

    def growth(self) -> int:
        return sum(self.rounded(one.held + 1) - one.size for one in self.running)

    def enter(self, one: _Running) -> bool:
        # With its first step, or it would be read only to be thrown out by it.
        with_step = min(one.text_len + 1, sum(one.request) - 1)
        if self.rounded(with_step) + self.growth() > self.free:
            return False
        one.size = self.rounded(one.text_len)
        self.free -= one.size
        return True

    def make_room(self) -> None:
        while (growth := self.growth()) > self.free:
            last = self.running.pop()
            self.leave(last)
            self.waiting.appendleft(last)
            self.preempted, self.recomputed = self.preempted + 1, self.recomputed + last.held
        for one in self.running:
            one.size = self.rounded(one.held + 1)
        self.free -= growth

    def leave(self, one: _Running) -> None:
        self.free += one.size

    def stranded(self) -> int:
        """Blocks need not touch: none is ever in the wrong place."""
        return 0
