"""A request and a trace in memory: what their values may be, checked when they are made."""

import numbers
from dataclasses import dataclass, field
from typing import Any

from inferlab.errors import UserError

STATUSES = ("ok", "error", "timeout", "cancelled")

MAX_ID_CHARS = 256
MAX_TIME_S = 1e10  # 300 years: lets epoch seconds in, keeps nanoseconds out
MAX_TOKENS = 1_000_000_000


class TraceError(UserError):
    """A trace or a trace file that breaks the format; the message names the place."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, times in seconds on one clock whose zero is arbitrary.

    `events` are (time, tokens) pairs in time order; an event of 0 tokens is a chunk without text
    (many servers open a stream with one), an event of several tokens is several at once. Raises
    TraceError for values that no measurement can produce. Plain and NumPy numbers are accepted
    and stored as plain ones; booleans are not numbers.
    """

    id: str
    scheduled: float
    sent: float
    prompt_tokens: int
    events: tuple[tuple[float, int], ...]
    status: str = "ok"
    error: str | None = None

    def __post_init__(self) -> None:
        _check_text(self.id, "id")
        if not 0 < len(self.id) <= MAX_ID_CHARS:
            raise TraceError(f"id must have 1 to {MAX_ID_CHARS} characters, not {len(self.id)}")
        scheduled = _time(self.scheduled, "scheduled")
        sent = _time(self.sent, "sent")
        if sent < scheduled:
            raise TraceError(f"sent ({sent:g} s) is before scheduled ({scheduled:g} s)")
        prompt_tokens = _count(self.prompt_tokens, "prompt_tokens")
        if not isinstance(self.events, tuple | list):
            raise TraceError("events must be a list of [seconds, tokens] pairs")
        events = []
        previous, previous_name = sent, "sent"
        for index, event in enumerate(self.events):
            if not isinstance(event, tuple | list) or len(event) != 2:
                raise TraceError(f"events[{index}] must be a pair [seconds, tokens]")
            time = _time(event[0], f"events[{index}] time")
            if time < previous:
                raise TraceError(
                    f"time runs backwards: events[{index}] at {time:g} s is before "
                    f"{previous_name} at {previous:g} s"
                )
            events.append((time, _count(event[1], f"events[{index}] tokens")))
            previous, previous_name = time, f"events[{index}]"
        if self.status not in STATUSES:
            known = ", ".join(STATUSES)
            raise TraceError(f"status must be one of {known}, not {short_repr(self.status)}")
        if self.error is not None:
            _check_text(self.error, "error")
        for name, value in (
            ("scheduled", scheduled),
            ("sent", sent),
            ("prompt_tokens", prompt_tokens),
            ("events", tuple(events)),
        ):
            object.__setattr__(self, name, value)

    @property
    def output_tokens(self) -> int:
        """Tokens received, over all events."""
        return sum(tokens for _, tokens in self.events)


@dataclass(frozen=True, slots=True)
class Trace:
    """A run: its requests in file order, and what is known about it (JSON values only).

    `meta["label"]` says `measured`, `emulated` or `cited`.
    """

    requests: tuple[Request, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "requests", tuple(self.requests))
        if not isinstance(self.meta, dict):
            raise TraceError("meta must be an object")
        seen: set[str] = set()
        for request in self.requests:
            if request.id in seen:
                raise TraceError(f"two requests have the id {short_repr(request.id)}")
            seen.add(request.id)


def _time(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TraceError(f"{name} must be a number of seconds, not {short_repr(value)}")
    if not abs(value) <= MAX_TIME_S:  # also catches NaN; before float(), which overflows
        raise TraceError(
            f"{name} must be finite seconds below {MAX_TIME_S:g}, not {short_repr(value)}"
        )
    return float(value)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TraceError(f"{name} must be a whole number, not {short_repr(value)}")
    if not 0 <= value <= MAX_TOKENS:
        raise TraceError(f"{name} must be between 0 and {MAX_TOKENS:,}, not {short_repr(value)}")
    return int(value)


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise TraceError(f"{name} must be text, not {short_repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TraceError(f"{name} holds half of a surrogate pair") from None


def short_repr(value: Any) -> str:
    """The value as one printable ASCII line of bounded length, for an error message."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a huge integer"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
