"""What the dialects share: spans of time, rates, means, and milliseconds."""

from collections.abc import Iterable, Sequence

import numpy as np

from inferlab.metrics.request import SHORTEST_S, token_events
from inferlab.trace import Request


def completed(requests: Iterable[Request]) -> list[Request]:
    """The requests that ended well."""
    return [request for request in requests if request.status == "ok"]


def last_event_s(request: Request) -> float:
    """Time of the last event of any kind; the sent time where nothing came back."""
    return request.events[-1][0] if request.events else request.sent


def sent_to_first_token_s(request: Request) -> float | None:
    """First token event - sent time, which most tools call TTFT."""
    events = token_events(request)
    return events[0][0] - request.sent if events else None


def rate(count: float, duration_s: float) -> float | None:
    """count / duration, None where no time passed."""
    return count / duration_s if duration_s > SHORTEST_S else None


def mean_ms(values_s: Sequence[float]) -> float | None:
    """Mean in milliseconds, None for no values."""
    return 1e3 * float(np.mean(values_s)) if len(values_s) else None


def within(value: float | None, limit: float | None) -> bool | None:
    """Whether a value meets a limit: True without a limit, None without a value."""
    if limit is None:
        return True
    return None if value is None else value <= limit
