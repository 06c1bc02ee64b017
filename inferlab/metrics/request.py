"""The metrics of one request, and whether it meets an SLO (definitions: `inferlab.metrics`)."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

from inferlab.errors import UserError
from inferlab.trace import Request

SHORTEST_S = 1e-12  # below what any clock tells apart; its inverse is no speed


def token_events(request: Request) -> list[tuple[float, int]]:
    """The events that brought at least one token."""
    return [event for event in request.events if event[1] > 0]


def ttft_s(request: Request) -> float | None:
    """First token event - scheduled time; None without tokens."""
    events = token_events(request)
    return events[0][0] - request.scheduled if events else None


def ttft_from_sent_s(request: Request) -> float | None:
    """First token event - sent time; None without tokens."""
    events = token_events(request)
    return events[0][0] - request.sent if events else None


def tpot_s(request: Request) -> float | None:
    """(Last - first token event) / (tokens - 1); None for fewer than two tokens."""
    tokens = request.output_tokens
    if tokens < 2:
        return None
    events = token_events(request)
    return (events[-1][0] - events[0][0]) / (tokens - 1)


def itl_s(request: Request) -> list[float]:
    """Gaps between successive token events."""
    return [after[0] - before[0] for before, after in pairwise(token_events(request))]


def e2e_s(request: Request) -> float | None:
    """Last token event - scheduled time; None without tokens."""
    events = token_events(request)
    return events[-1][0] - request.scheduled if events else None


def user_tok_per_s(request: Request) -> float | None:
    """1 / TPOT, the speed one reader sees; None where TPOT is undefined or 0."""
    value = tpot_s(request)
    return 1 / value if value is not None and value > SHORTEST_S else None


@dataclass(frozen=True, slots=True)
class SLO:
    """Upper limits in seconds that a good request meets, all of them; None is no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in asdict(self).values() if limit is not None]
        if not limits:
            raise UserError("an SLO needs at least one limit (ttft_s, tpot_s or e2e_s)")
        if not all(math.isfinite(limit) and limit > 0 for limit in limits):
            raise UserError("an SLO limit must be a finite number of seconds above zero")


def is_good(request: Request, slo: SLO) -> bool:
    """Whether a request completed and meets every limit; an undefined quantity meets none."""
    if request.status != "ok":
        return False
    pairs = (
        (ttft_s(request), slo.ttft_s),
        (tpot_s(request), slo.tpot_s),
        (e2e_s(request), slo.e2e_s),
    )
    return all(value is not None and value <= limit for value, limit in pairs if limit is not None)
