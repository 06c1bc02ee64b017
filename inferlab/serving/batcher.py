"""Who forms the next batch, and when may it start?

Bookkeeping alone, without a model, a thread or a clock: whoever runs it passes the time in, so that
a server in real time and an emulated one decide by the same code.
Names as in NVIDIA's Triton Inference Server (dynamic batcher, maximum queue delay).
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from inferlab.errors import UserError

POLICIES = ("none", "static", "dynamic")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """When an idle server takes requests from its line, and how many at most.

    A batch starts when `size` requests wait, or when the oldest has waited `max_wait_s` seconds
    (infinite: only when `size` wait, or when no more will come).
    """

    name: str
    size: int
    max_wait_s: float

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            known = ", ".join(POLICIES)
            raise UserError(f"unknown batch policy {str(self.name)[:40]!r}; known: {known}")
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if not whole or self.size < 1:
            raise UserError(f"batch_size must be a whole number of at least 1, not {self.size!r}")
        if not isinstance(self.max_wait_s, int | float) or not self.max_wait_s >= 0:
            raise UserError(f"max_wait_s must be 0 s or more, not {self.max_wait_s!r}")


NONE = BatchPolicy("none", 1, 0.0)


def static(size: int) -> BatchPolicy:
    """Wait until `size` requests are there, however long that takes."""
    return BatchPolicy("static", size, math.inf)


def dynamic(size: int, max_wait_s: float = 0.0) -> BatchPolicy:
    """Up to `size` of those that wait; hold a smaller batch open for at most `max_wait_s`."""
    return BatchPolicy("dynamic", size, max_wait_s)


def make_policy(name: str, size: int, max_wait_s: float = 0.0) -> BatchPolicy:
    """The policy called `name`; `size` and `max_wait_s` count where it has them."""
    if name == "none":
        return NONE
    return static(size) if name == "static" else BatchPolicy(name, size, max_wait_s)


class Batcher(Generic[Item]):
    """The line of one server: first come, first served."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self._waiting: deque[tuple[Item, float]] = deque()

    @property
    def num_waiting(self) -> int:
        """Requests in line."""
        return len(self._waiting)

    def add(self, item: Item, arrived_s: float) -> None:
        """A request that came at `arrived_s`; in order of arrival."""
        if self._waiting and arrived_s < self._waiting[-1][1]:
            raise UserError("requests enter the line in order of arrival: sort them by time")
        self._waiting.append((item, arrived_s))

    def due_s(self) -> float | None:
        """From when on `take` gives a batch though nobody else comes; None: not by waiting."""
        if not self._waiting:
            return None
        if self.num_waiting >= self.policy.size:
            return self._waiting[0][1]
        end_s = self._waiting[0][1] + self.policy.max_wait_s
        return end_s if math.isfinite(end_s) else None

    def take(self, now_s: float, more_to_come: bool = True) -> list[Item]:
        """The batch that an idle server starts at `now_s`; empty while it has to wait.

        Without `more_to_come` a static batch that can never get full is served as it is. A wait
        limit is kept even then: a server does not know that nobody else comes.
        """
        due_s = self.due_s()
        if due_s is None and more_to_come or due_s is not None and now_s < due_s:
            return []
        count = min(self.policy.size, self.num_waiting)
        return [self._waiting.popleft()[0] for _ in range(count)]
