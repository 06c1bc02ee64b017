"""At which rate does a server stop meeting its SLO, and what happens on the way there?

Each rate is a run with prompts and arrivals of its own. A rate counts when the share of requests
within the SLO reaches the goodput ratio; a run whose client may not be trusted is made once more.
A short run above the knee can still look good, because its queue has not grown yet: the longer
the runs, the closer the answer.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inferlab.errors import UserError
from inferlab.load.plan import CannotPlan
from inferlab.load.point import LoadPoint

MOST_POINTS = 16
SEED_STEP = 1000  # between the seeds of two points
ANSWERED_RATIO = 0.8  # of the offered rate: below it the server has fallen behind

# A point at a rate (requests a second) with a seed offset.
Measure = Callable[[float, int], LoadPoint]


@dataclass(frozen=True, slots=True)
class RateSearch:
    """The points in the order they were made, the highest rate that passed and the lowest that did
    not; either is None where no point did so. `complete` is False when the search ended early, and
    `why` says what ended it."""

    points: tuple[LoadPoint, ...]
    passing_req_per_s: float | None
    failing_req_per_s: float | None
    complete: bool
    why: str = ""


def find_max_rate(
    measure: Measure,
    start_req_per_s: float,
    goodput_ratio: float,
    precision_ratio: float = 0.1,
    most_points: int = MOST_POINTS,
    lowest_req_per_s: float = 0.0,
) -> RateSearch:
    """Double (or halve) the rate until it fails (passes), then bisect on a logarithmic scale.

    Ends when the failing rate is at most `precision_ratio` above the passing one, after
    `most_points` runs, at an interruption, at a run that is void twice, or at a rate that cannot be
    planned; and below `lowest_req_per_s`, where requests are alone on the server and more patience
    changes nothing.
    """
    _check(start_req_per_s, "the first rate")
    if not 0 < goodput_ratio <= 1:
        raise UserError(f"the goodput ratio must lie above 0 and up to 1, not {goodput_ratio!r}")
    if not 0.01 <= precision_ratio <= 1:
        raise UserError(f"the precision must lie between 0.01 and 1, not {precision_ratio!r}")
    points: list[LoadPoint] = []
    low = high = None
    rate = start_req_per_s
    why = f"after {most_points} runs"
    while len(points) < most_points:
        try:
            point = _trusted(measure, rate, points)
        except CannotPlan as error:
            if not points:
                raise
            why = f"at {rate:.3g} req/s: {error}"
            break
        if point.interrupted or point.is_void:
            why = "interrupted" if point.interrupted else f"void twice at {rate:.3g} req/s"
            break
        if point.meets(goodput_ratio):
            low = rate
        else:
            high = rate
        if low is not None and high is not None:
            if high <= low * (1 + precision_ratio):
                return RateSearch(tuple(points), low, high, True)
            rate = math.sqrt(low * high)
        else:
            rate = rate * 2 if high is None else rate / 2
            if rate < lowest_req_per_s:
                why = f"below {lowest_req_per_s:.3g} req/s, where requests hardly meet each other"
                break
    return RateSearch(tuple(points), low, high, False, why)


def ended_search(points: Sequence[LoadPoint], goodput_ratio: float, why: str) -> RateSearch:
    """What the points of a search say that something from outside has ended."""
    sound = [point for point in points if not (point.interrupted or point.is_void)]
    passed = [p.plan.rate_req_per_s for p in sound if p.meets(goodput_ratio)]
    failed = [p.plan.rate_req_per_s for p in sound if not p.meets(goodput_ratio)]
    return RateSearch(
        tuple(points), max(passed, default=None), min(failed, default=None), False, why
    )


def void_points(points: Sequence[LoadPoint]) -> list[LoadPoint]:
    """Those whose client may not be trusted, and that were not made once more with a better end."""
    following = [*points[1:], None]
    return [
        point
        for point, after in zip(points, following, strict=True)
        if point.is_void and not (after and after.plan.rate_req_per_s == point.plan.rate_req_per_s)
    ]


def sweep(
    measure: Measure,
    start_req_per_s: float,
    rates_req_per_s: tuple[float, ...] = (),
    most_points: int = 10,
) -> list[LoadPoint]:
    """The given rates; or doubled from the start, up to the first that the server cannot answer.

    It cannot where it answers less than ANSWERED_RATIO of what is offered a second.
    """
    for rate in rates_req_per_s:
        _check(rate, "a rate")
    _check(start_req_per_s, "the first rate")
    points: list[LoadPoint] = []
    if rates_req_per_s:
        for rate in rates_req_per_s:
            if _trusted(measure, rate, points).interrupted:
                break
        return points
    rate = start_req_per_s
    for _ in range(most_points):
        try:
            point = _trusted(measure, rate, points)
        except CannotPlan:
            if not points:
                raise
            break
        if point.interrupted or point.all_failed:
            break
        answered, offered = point.summary.requests_per_s, point.offered_req_per_s
        if answered is not None and offered and answered < ANSWERED_RATIO * offered:
            break
        rate *= 2
    return points


def _trusted(measure: Measure, rate: float, points: list[LoadPoint]) -> LoadPoint:
    """A point at `rate`, made once more when its client was late or busy; appended to `points`."""
    for _ in range(2):
        points.append(measure(rate, SEED_STEP * len(points)))
        if not points[-1].is_void or points[-1].interrupted:
            break
    return points[-1]


def _check(rate: float, name: str) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise UserError(f"{name} must be above 0 requests/s, not {rate!r}")
