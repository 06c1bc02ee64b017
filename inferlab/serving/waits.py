"""How long did each request of a trace wait for its batch, and with whom was it served?

A server of batches keeps in the trace's `meta["batches"]` when each batch began and ended and how
many requests it took; requests are served in the order of the trace.
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inferlab.errors import UserError
from inferlab.trace import Trace


@dataclass(frozen=True, slots=True)
class ServedBatch:
    """One batch: seconds on the clock of the trace, and how many requests it took."""

    start_s: float
    end_s: float
    size: int

    @property
    def service_s(self) -> float:
        """Seconds from its start until its longest answer is complete."""
        return self.end_s - self.start_s


def batches_meta(batches: Iterable[ServedBatch]) -> list[list[float]]:
    """`batches` as the meta of a trace holds them."""
    return [[batch.start_s, batch.end_s, batch.size] for batch in batches]


def batches_of(trace: Trace) -> tuple[ServedBatch, ...]:
    """The batches of a trace; a UserError when they do not cover its requests."""
    try:
        rows = trace.meta["batches"]
        found = tuple(ServedBatch(float(a), float(b), int(size)) for a, b, size in rows)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            "the trace does not say which batches were served: take one of the backend `batched`"
        ) from None
    if sum(batch.size for batch in found) != len(trace.requests):
        raise UserError("the batches of the trace do not add up to its requests")
    return found


def waits_s(trace: Trace) -> list[float]:
    """Start of its batch - scheduled time, of each request."""
    starts = [batch.start_s for batch in batches_of(trace) for _ in range(batch.size)]
    return [start - r.scheduled for start, r in zip(starts, trace.requests, strict=True)]


def batch_sizes_seen(trace: Trace) -> list[int]:
    """Size of the batch that each request was served in."""
    return [batch.size for batch in batches_of(trace) for _ in range(batch.size)]
