"""The stalling server: hand-computed runs, and that only the due time tells the truth."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab.backends import load_backend
from inferlab.backends.stall import serve
from inferlab.dialects import DIALECTS
from inferlab.errors import UserError
from inferlab.metrics import e2e_s, summarize, ttft_from_sent_s, ttft_s
from inferlab.workload import (
    constant_times,
    poisson_arrivals,
    scheduled_at,
    uniform_batch,
)


def every_second(count=20, output_len=1):
    batch = uniform_batch(100, count, 4, output_len)
    return scheduled_at(batch, constant_times(count, 1.0))


def test_without_load_or_stall_a_request_takes_its_service_time():
    trace = serve(every_second(output_len=5), service_s=0.5)
    first = trace.requests[0]
    assert [time for time, _ in first.events] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert all(e2e_s(request) == pytest.approx(0.5) for request in trace.requests)
    assert trace.meta["label"] == "emulated"


def test_work_in_progress_stands_still_during_a_stall():
    trace = serve(every_second(2, output_len=2), service_s=0.4, stalls=[(0.3, 10.0)])
    first, second = trace.requests
    assert [time for time, _ in first.events] == pytest.approx([0.2, 10.4])
    assert [time for time, _ in second.events] == pytest.approx([10.6, 10.8])


def test_a_request_that_arrives_in_a_stall_waits_for_its_end():
    trace = serve(every_second(2), service_s=0.25, stalls=[(0.5, 1.0), (1.6, 1.0)])
    assert trace.requests[1].events[0][0] == pytest.approx(1.5 + 0.1 + 1.0 + 0.15)


def test_the_waiting_client_omits_what_the_open_one_sees():
    workload, stalls = every_second(100), [(10.2, 20.0)]
    open_loop = serve(workload, 0.5, stalls)
    waiting = serve(workload, 0.5, stalls, client="waiting")
    slow_open = sum(ttft_from_sent_s(r) > 1 for r in open_loop.requests)
    slow_waiting = sum(ttft_from_sent_s(r) > 1 for r in waiting.requests)
    assert slow_waiting == 1 and slow_open > 20
    assert [ttft_s(r) for r in waiting.requests] == [ttft_s(r) for r in open_loop.requests]
    honest, fooled = DIALECTS["mlperf"](waiting), DIALECTS["vllm"](waiting)
    assert honest["result_first_token_mean_latency_ns"] > 4e9
    assert fooled["mean_ttft_ms"] < 1000


@settings(max_examples=50)
@given(
    st.integers(1, 30),
    st.floats(0.2, 5),
    st.floats(0.05, 2),
    st.floats(0, 20),
    st.floats(0.1, 20),
    st.integers(1, 4),
)
def test_both_clients_finish_alike_and_the_waiting_one_never_looks_slower(
    count, rate, service, start, duration, output_len
):
    workload = poisson_arrivals(uniform_batch(50, count, 2, output_len), rate)
    stalls = [(start, duration)]
    open_loop = serve(workload, service, stalls)
    waiting = serve(workload, service, stalls, client="waiting")
    for one, two in zip(open_loop.requests, waiting.requests, strict=True):
        assert one.events == two.events
        assert ttft_from_sent_s(two) <= ttft_from_sent_s(one) + 1e-9
        assert e2e_s(one) >= service - 1e-9
    assert summarize(open_loop).ttft_s == summarize(waiting).ttft_s


def test_backend_interface():
    backend = load_backend("stall", "smollm2-135m", service_s=0.1, client="waiting")
    run = backend.run(every_second(3, output_len=2))
    assert run.token_ids == [[0, 0]] * 3 and run.trace.meta["client"] == "waiting"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"service_s": 0.0}, "service times"),
        ({"service_s": [0.1]}, "as many service times"),
        ({"stalls": [(1.0, 0.0)]}, "duration above zero"),
        ({"stalls": [(5.0, 2.0), (6.0, 1.0)]}, "not overlap"),
        ({"stalls": [(float("nan"), 2.0)]}, "finite"),
        ({"client": "polite"}, "unknown client"),
    ],
)
def test_impossible_servers_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        serve(every_second(3), **{"service_s": 0.1, **options})
