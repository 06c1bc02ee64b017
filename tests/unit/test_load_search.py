"""The search for the highest rate, on servers whose answer is known."""

from types import SimpleNamespace

import pytest

from inferlab.errors import UserError
from inferlab.load.plan import CannotPlan
from inferlab.load.search import ended_search, find_max_rate, sweep


def server(limit, void=(), stop=None, most=float("inf")):
    """Points of a server that meets its SLO up to `limit`; calls are (rate, seed offset)."""
    calls = []

    def measure(rate, offset):
        if rate > most:
            raise CannotPlan("too many requests")
        calls.append((rate, offset))
        return SimpleNamespace(
            interrupted=len(calls) == stop,
            is_void=len(calls) in void,
            all_failed=False,
            offered_req_per_s=rate,
            summary=SimpleNamespace(requests_per_s=min(rate, limit)),
            meets=lambda ratio: rate <= limit,
            plan=SimpleNamespace(rate_req_per_s=rate),
        )

    return measure, calls


@pytest.mark.parametrize("limit", [0.3, 5.0, 77.7])
@pytest.mark.parametrize("precision", [0.05, 0.2])
def test_the_limit_is_found_from_below_and_above(limit, precision):
    measure, calls = server(limit)
    found = find_max_rate(measure, 4.0, 0.9, precision)
    assert found.complete and found.passing_req_per_s <= limit < found.failing_req_per_s
    assert found.failing_req_per_s <= found.passing_req_per_s * (1 + precision)
    offsets = [offset for _, offset in calls]
    assert len(set(offsets)) == len(offsets)  # prompts of its own for every point


def test_a_void_point_is_made_again_and_two_end_the_search():
    measure, calls = server(10.0, void=(2,))
    assert find_max_rate(measure, 4.0, 0.9).complete and calls[1][0] == calls[2][0]
    measure, calls = server(10.0, void=(2, 3))
    found = find_max_rate(measure, 4.0, 0.9)
    assert not found.complete and found.passing_req_per_s == 4.0 and len(calls) == 3


def test_a_search_ends_and_says_how():
    measure, calls = server(1e9)
    found = find_max_rate(measure, 1.0, 0.9, most_points=5)
    assert (found.passing_req_per_s, found.failing_req_per_s) == (16.0, None)
    measure, calls = server(0.001)
    found = find_max_rate(measure, 1.0, 0.9, lowest_req_per_s=0.3)
    assert (found.passing_req_per_s, found.failing_req_per_s, len(calls)) == (None, 0.5, 2)
    measure, calls = server(10.0, stop=2)
    assert not find_max_rate(measure, 1.0, 0.9).complete and len(calls) == 2


def test_a_rate_that_cannot_be_planned_ends_it_with_what_there_is():
    found = find_max_rate(server(1e9, most=5.0)[0], 2.0, 0.9)
    assert (found.passing_req_per_s, found.complete) == (4.0, False)
    assert found.why == "at 8 req/s: too many requests"
    assert len(sweep(server(1e9, most=5.0)[0], 2.0)) == 2
    for wrong in (lambda m: find_max_rate(m, 6.0, 0.9), lambda m: sweep(m, 6.0)):
        with pytest.raises(CannotPlan):  # not even the first
            wrong(server(1e9, most=5.0)[0])


def test_the_points_of_a_search_that_was_ended_say_where_it_was():
    measure, _ = server(5.0, void=(3,))
    points = [measure(rate, 0) for rate in (2.0, 4.0, 6.0, 8.0)]  # 6 is void
    found = ended_search(points, 0.9, "interrupted")
    assert (found.passing_req_per_s, found.failing_req_per_s) == (4.0, 8.0)
    assert (found.complete, found.why) == (False, "interrupted")


def test_a_sweep_doubles_until_the_server_falls_behind():
    measure, calls = server(10.0)
    assert [point.offered_req_per_s for point in sweep(measure, 2.0)] == [2, 4, 8, 16]
    measure, calls = server(10.0)
    assert [p.offered_req_per_s for p in sweep(measure, 1.0, (3.0, 30.0))] == [3, 30]
    measure, calls = server(10.0, stop=1)
    assert len(sweep(measure, 2.0)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: find_max_rate(m, 0.0, 0.9),
        lambda m: find_max_rate(m, 1.0, 0.0),
        lambda m: find_max_rate(m, 1.0, 0.9, precision_ratio=0.0),
        lambda m: sweep(m, 1.0, (1.0, -2.0)),
    ],
)
def test_impossible_searches_are_refused(wrong):
    with pytest.raises(UserError):
        wrong(server(1.0)[0])
