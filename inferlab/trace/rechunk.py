"""What would a log look like if the server had sent its tokens in larger chunks?

Chapter: chapters/01_metrics.md    Lab: labs/01_metrics.ipynb
"""

from inferlab.errors import UserError
from inferlab.trace.model import Request, Trace


def rechunk(trace: Trace, events_per_chunk: int, empty_at_ratio: float | None = None) -> Trace:
    """The same tokens in fewer events, and perhaps an empty first chunk.

    The first token event stays as it is; after it, each run of `events_per_chunk` token events
    becomes one, at the time of its last: no token is seen before it was there. With
    `empty_at_ratio` the stream opens with an event of 0 tokens at that share of the time from send
    to first token (0: at once, 1: with it). First and last time and the number of tokens do not
    change. The times are real and the chunks are imposed, so the label becomes `emulated`.
    """
    if isinstance(events_per_chunk, bool) or not isinstance(events_per_chunk, int):
        raise UserError(f"events_per_chunk must be a whole number, not {events_per_chunk!r}")
    if events_per_chunk < 1:
        raise UserError(f"events_per_chunk must be at least 1, not {events_per_chunk!r}")
    if empty_at_ratio is not None and not 0 <= empty_at_ratio <= 1:
        raise UserError(f"empty_at_ratio must lie between 0 and 1, not {empty_at_ratio!r}")
    requests = tuple(_chunked(r, events_per_chunk, empty_at_ratio) for r in trace.requests)
    imposed = {"events_per_chunk": events_per_chunk, "empty_at_ratio": empty_at_ratio}
    return Trace(requests, {**trace.meta, "label": "emulated", "rechunked": imposed})


def _chunked(request: Request, size: int, empty_at_ratio: float | None) -> Request:
    seen = [event for event in request.events if event[1] > 0]
    if not seen:
        return request
    first, rest = seen[0], seen[1:]
    events = [first]
    for start in range(0, len(rest), size):
        group = rest[start : start + size]
        events.append((group[-1][0], sum(tokens for _, tokens in group)))
    if empty_at_ratio is not None:
        opened = request.sent + empty_at_ratio * (first[0] - request.sent)
        events.insert(0, (min(opened, first[0]), 0))
    return Request(
        request.id, request.scheduled, request.sent, request.prompt_tokens, tuple(events),
        request.status, request.error,
    )  # fmt: skip
