"""Our metrics: the definitions on hand-made traces, and what must hold for any trace."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import requests, traces

from inferlab.errors import UserError
from inferlab.metrics import (
    SLO,
    distribution,
    e2e_s,
    is_good,
    itl_s,
    summarize,
    tpot_s,
    ttft_from_sent_s,
    ttft_s,
    user_tok_per_s,
)
from inferlab.trace import Request, Trace

WORKED = Request("a", 0.0, 0.0, 5, [(0.100, 1), (0.140, 2), (0.180, 2)])


def request(events, scheduled=0.0, sent=None, status="ok", identity="a"):
    return Request(identity, scheduled, scheduled if sent is None else sent, 3, events, status)


def shifted(trace, offset_s):
    return Trace(
        tuple(
            replace(
                r,
                scheduled=r.scheduled + offset_s,
                sent=r.sent + offset_s,
                events=tuple((time + offset_s, tokens) for time, tokens in r.events),
            )
            for r in trace.requests
        ),
        trace.meta,
    )


def test_worked_example():
    assert ttft_s(WORKED) == pytest.approx(0.100)
    assert tpot_s(WORKED) == pytest.approx(0.020)
    assert itl_s(WORKED) == pytest.approx([0.040, 0.040])
    assert e2e_s(WORKED) == pytest.approx(0.180)
    assert user_tok_per_s(WORKED) == pytest.approx(50)


def test_ttft_holds_the_wait_before_sending():
    late = request([(3.0, 1)], scheduled=0.0, sent=2.0)
    assert (ttft_s(late), ttft_from_sent_s(late)) == (3.0, 1.0)


def test_empty_events_are_not_tokens():
    padded = request([(0.1, 0), (0.2, 1), (0.3, 1), (0.9, 0)])
    assert (ttft_s(padded), e2e_s(padded)) == (0.2, 0.3)
    assert tpot_s(padded) == pytest.approx(0.1)


def test_several_tokens_in_the_first_event_count_in_the_divisor():
    assert tpot_s(request([(1.0, 3), (2.0, 1)])) == pytest.approx(1.0 / 3)


def test_an_answer_in_one_event_has_no_speed_and_is_counted():
    lump = request([(1.0, 5)])
    assert tpot_s(lump) == 0.0 and user_tok_per_s(lump) is None
    summary = summarize(Trace((lump,)))
    assert summary.counts["single_event_answers"] == 1
    assert summary.user_tok_per_s.count == 0


@pytest.mark.parametrize("events", [[], [(1.0, 0)]])
def test_without_tokens_everything_is_undefined(events):
    silent = request(events)
    assert [f(silent) for f in (ttft_s, ttft_from_sent_s, tpot_s, e2e_s)] == [None] * 4
    summary = summarize(Trace((silent,)))
    assert summary.ttft_s.count == 0 and summary.counts["no_output"] == 1


def test_single_token_answers_are_counted_and_not_good_under_a_tpot_limit():
    one = request([(0.1, 1)])
    assert tpot_s(one) is None
    assert not is_good(one, SLO(tpot_s=1.0))
    assert is_good(one, SLO(ttft_s=1.0))
    assert summarize(Trace((one,))).counts["tpot_undefined"] == 1


def test_failures_are_counted_and_never_good():
    good = request([(0.1, 1), (0.2, 1)], identity="good")
    bad = [
        request([(0.1, 1), (0.2, 1)], identity=status, status=status)
        for status in ("error", "timeout", "cancelled")
    ]
    summary = summarize(Trace((good, *bad)), slo=SLO(ttft_s=1.0, tpot_s=1.0, e2e_s=1.0))
    assert summary.counts["failed"] == 3 and summary.counts["output_tokens_of_failed"] == 6
    assert summary.ttft_s.count == 1
    assert summary.goodput.good_requests == 1 and summary.goodput.attainment_ratio == 0.25
    assert summary.output_tok_per_s == pytest.approx(2 / 0.2)


def test_warmup_drops_the_earliest_requests_and_starts_the_window_after_them():
    trace = Trace(tuple(request([(10.0 * i + 1, 2)], 10.0 * i, identity=str(i)) for i in (2, 0, 1)))
    summary = summarize(trace, warmup=1)
    assert summary.counts["requests"] == 2 and summary.counts["warmup_excluded"] == 1
    assert (summary.window.start_s, summary.window.end_s) == (10.0, 21.0)
    assert summary.output_tok_per_s == pytest.approx(4 / 11)


def test_a_stated_window_counts_tokens_by_arrival_and_latencies_by_schedule():
    early = request([(1.0, 1), (11.0, 4)], 0.0, identity="early")
    inside = request([(12.0, 1), (25.0, 1)], 11.0, identity="inside")
    summary = summarize(Trace((early, inside)), window=(10.0, 20.0))
    assert summary.counts["requests"] == 1 and summary.ttft_s.mean == pytest.approx(1.0)
    assert summary.output_tok_per_s == pytest.approx(5 / 10)
    assert summary.window.rule == "stated"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup": 1}, "nothing to measure"),
        ({"warmup": -1}, "warmup"),
        ({"window": (5.0, 5.0)}, "window"),
        ({"window": (5.0, float("nan"))}, "window"),
        ({"window": (50.0, 60.0)}, "inside the window"),
    ],
)
def test_nothing_left_to_measure_is_an_error(options, words):
    with pytest.raises(UserError, match=words):
        summarize(Trace((WORKED,)), **options)


@pytest.mark.parametrize("limits", [{}, {"ttft_s": 0.0}, {"e2e_s": float("nan")}])
def test_an_slo_without_a_usable_limit_is_refused(limits):
    with pytest.raises(UserError):
        SLO(**limits)


def test_p99_is_null_with_a_reason_below_459_requests():
    small, large = distribution([1.0] * 458).to_dict(), distribution([1.0] * 459).to_dict()
    assert small["p99"] is None and "459" in small["refused"]["p99"]
    assert large["p99"] == 1.0 and large["refused"] == {}


def test_everything_at_one_instant_has_no_rate():
    summary = summarize(Trace((request([(0.0, 3)]),)), slo=SLO(ttft_s=1.0))
    assert summary.output_tok_per_s is None and summary.goodput.requests_per_s is None


@given(requests(statuses=("ok",)))
def test_ttft_and_tpot_add_up_to_e2e(r):
    if r.output_tokens >= 2:
        total = ttft_s(r) + tpot_s(r) * (r.output_tokens - 1)
        assert total == pytest.approx(e2e_s(r), abs=1e-9)
        assert sum(itl_s(r)) == pytest.approx(e2e_s(r) - ttft_s(r), abs=1e-9)


@given(traces(), st.integers(-1000, 1000))
def test_no_metric_depends_on_the_zero_of_the_clock(trace, offset_s):
    slo = SLO(ttft_s=5.0000005)  # off the microsecond grid, so rounding cannot flip it
    one = summarize(trace, slo=slo).to_dict()
    two = summarize(shifted(trace, float(offset_s)), slo=slo).to_dict()
    assert one["counts"] == two["counts"]
    assert one["goodput"]["good_requests"] == two["goodput"]["good_requests"]
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert one[name]["mean"] == pytest.approx(two[name]["mean"], abs=1e-9)


@given(traces())
def test_a_summary_is_json_and_its_percentiles_are_ordered(trace):
    summary = summarize(trace).to_dict()
    json.dumps(summary, allow_nan=False)
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        d = summary[name]
        if d["count"]:
            slack = 1e-9
            assert d["min"] <= d["median"] + slack and d["median"] <= d["p90"] + slack
            assert d["p90"] <= d["p95"] + slack and d["p95"] <= d["max"] + slack
