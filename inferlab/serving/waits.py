"""How long did each request of a trace wait for its batch, and with whom was it served?

A server of batches, real or emulated, keeps in the trace's `meta["batches"]` when each batch began
and ended and how many requests it took; requests are served in the order of the trace.
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inferlab.errors import UserError
from inferlab.serving.batcher import BatchPolicy
from inferlab.trace import Request, Trace
from inferlab.workload import RequestSpec

PREFILLS = ("padded", "packed")  # how the prompts of a batch are read together


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


def check_prefill(prefill: str) -> None:
    """UserError for a way of reading prompts that is not one of PREFILLS."""
    if prefill not in PREFILLS:
        raise UserError(f"unknown prefill {str(prefill)[:40]!r}; known: {', '.join(PREFILLS)}")


def policy_meta(policy: BatchPolicy) -> dict[str, Any]:
    """What a trace says of its policy; a wait without limit is null."""
    limit = policy.max_wait_s
    return {
        "policy": policy.name,
        "max_batch_size": policy.size,
        "max_wait_s": None if limit == float("inf") else limit,
    }


def served_request(spec: RequestSpec, ends_s: Sequence[float]) -> Request:
    """The request of a trace whose batch took a step until each of `ends_s`; it is sent when due.

    It gets one token a step until it has its own.
    """
    events = tuple((end_s, 1) for end_s in ends_s[: spec.output_len])
    return Request(spec.id, spec.scheduled, spec.scheduled, spec.prompt_len, events)


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
