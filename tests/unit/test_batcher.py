"""Who forms the next batch: the policies, without a clock."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.serving.batcher import NONE, Batcher, BatchPolicy, dynamic, make_policy, static
from inferlab.serving.waits import batch_sizes_seen, batches_of, waits_s
from inferlab.trace import Request, Trace


def test_without_batching_everybody_is_served_alone_and_at_once():
    line = Batcher(NONE)
    line.add("a", 0.0)
    line.add("b", 1.0)
    assert line.take(1.0) == ["a"]
    assert line.take(1.0) == ["b"]
    assert line.take(1.0) == []


def test_a_static_batch_waits_until_it_is_full_or_nobody_else_comes():
    line = Batcher(static(3))
    line.add("a", 0.0)
    line.add("b", 1.0)
    assert line.due_s() is None
    assert line.take(1e9) == []
    assert line.take(1e9, more_to_come=False) == ["a", "b"]
    for time, item in enumerate("cdef"):
        line.add(item, 2.0 + time)
    assert line.take(5.0) == ["c", "d", "e"]
    assert line.num_waiting == 1


def test_a_dynamic_batch_waits_for_as_long_as_its_oldest_may():
    line = Batcher(dynamic(3, 0.5))
    line.add("a", 1.0)
    line.add("b", 1.4)
    assert line.due_s() == 1.5
    assert line.take(1.49) == []
    assert line.take(1.49, more_to_come=False) == []  # a server does not know that
    assert line.take(1.5) == ["a", "b"]
    for item in "cdef":
        line.add(item, 2.0)
    assert line.take(2.0) == ["c", "d", "e"]  # full: nothing to wait for


def test_a_dynamic_batch_without_a_limit_takes_whoever_waits():
    line = Batcher(dynamic(3))
    assert line.take(0.0) == [] and line.due_s() is None
    line.add("a", 1.0)
    assert line.take(1.0) == ["a"]


def test_policies_by_name():
    assert make_policy("none", 8, 1.0) == NONE
    assert make_policy("static", 8, 1.0) == static(8)
    assert make_policy("dynamic", 8, 1.0) == dynamic(8, 1.0)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: BatchPolicy("later", 2, 0.0), "none, static, dynamic"),
        (lambda: static(0), "batch_size"),
        (lambda: static(True), "batch_size"),
        (lambda: dynamic(2, -1.0), "max_wait_s"),
        (lambda: dynamic(2, math.nan), "max_wait_s"),
    ],
)
def test_what_no_policy_can_be(make, word):
    with pytest.raises(UserError, match=word) as error:
        make()
    assert "\n" not in str(error.value)


def test_requests_enter_in_order_of_arrival():
    line = Batcher(NONE)
    line.add("a", 2.0)
    with pytest.raises(UserError, match="order of arrival"):
        line.add("b", 1.0)


@given(
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=30),
    size=st.integers(1, 5),
    max_wait_s=st.sampled_from([0.0, 0.3, 1.0, math.inf]),
    service_s=st.floats(0.01, 3),
)
def test_nobody_is_lost_overtaken_or_held_too_long(gaps, size, max_wait_s, service_s):
    policy = BatchPolicy("dynamic", size, max_wait_s)
    line, served, now, arrivals = Batcher(policy), [], 0.0, []
    for gap in gaps:
        arrivals.append((arrivals[-1] if arrivals else 0.0) + gap)
    pending = list(enumerate(arrivals))
    while pending or line.num_waiting:
        while pending and pending[0][1] <= now:
            line.add(*pending.pop(0))
        batch = line.take(now, bool(pending))
        assert len(batch) <= size
        if not batch:
            moments = [] if line.due_s() is None else [line.due_s()]
            moments += [arrived for _, arrived in pending[:1]]
            assert moments  # else it would wait for ever
            assert min(moments) > now  # and it never spins
            now = min(moments)
            continue
        oldest = arrivals[batch[0]]
        if len(batch) < size and math.isfinite(max_wait_s):
            assert now >= oldest + max_wait_s
        served += batch
        now += service_s
    assert served == list(range(len(gaps)))


def trace_with(batches):
    requests = tuple(Request(f"r{i}", float(i), float(i), 4, ((9.0 + i, 1),)) for i in range(3))
    return Trace(requests, {"batches": batches} if batches is not None else {})


def test_waits_of_a_trace_come_from_its_batches():
    trace = trace_with([[1.5, 9.0, 2], [9.0, 12.0, 1]])
    assert waits_s(trace) == [1.5, 0.5, 7.0]
    assert batch_sizes_seen(trace) == [2, 2, 1]
    assert [batch.service_s for batch in batches_of(trace)] == [7.5, 3.0]


@pytest.mark.parametrize("batches", [None, 3, [[1, 2]], [["a", 1, 1]], [[1.5, 9.0, 2]]])
def test_a_trace_without_its_batches_is_refused(batches):
    with pytest.raises(UserError, match="batches"):
        waits_s(trace_with(batches))
