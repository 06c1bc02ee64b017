"""Each tool's reading of a trace: the worked example, and every rule on which they differ."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import traces

from inferlab.dialects import DIALECTS, all_dialects, readings
from inferlab.metrics import SLO, summarize
from inferlab.trace import Request, Trace


def request(events, identity="a", scheduled=0.0, sent=None, status="ok"):
    return Request(identity, scheduled, scheduled if sent is None else sent, 3, events, status)


def read(*requests, slo=None):
    return all_dialects(Trace(requests), slo)


WORKED = request([(0.100, 1), (0.140, 2), (0.180, 2)])


def test_worked_example_five_tokens_in_three_events():
    tools = read(WORKED)
    ms = pytest.approx
    assert tools["vllm"]["mean_tpot_ms"] == ms(20)
    assert tools["aiperf"]["inter_token_latency"]["avg"] == ms(20)
    assert tools["guidellm"]["inter_token_latency_ms"]["successful"]["mean"] == ms(20)
    assert tools["mlperf"]["result_time_to_output_token_mean"] == 20_000_000
    assert tools["vllm"]["mean_itl_ms"] == ms(40)
    assert tools["aiperf"]["inter_chunk_latency"]["avg"] == ms(40)
    assert tools["guidellm"]["time_per_output_token_ms"]["successful"]["mean"] == ms(36)
    assert tools["llmperf"]["inter_token_latency_s"]["mean"] == ms(0.036)
    assert tools["databricks"]["time_per_output_token_ms"] == ms(16)


def test_worked_example_has_one_ttft_everywhere():
    rows = readings(summarize(Trace((WORKED,))).to_dict(), read(WORKED))
    assert len(rows) == 8 and {row.tool for row in rows} == {"inferlab", *DIALECTS}
    for row in rows:
        assert row.ttft_ms == pytest.approx(100)
        assert row.latency_ms == pytest.approx(180)
        assert row.output_tok_per_s == pytest.approx(5 / 0.18)
    per_token = [round(row.per_token_ms, 6) for row in rows]
    assert per_token == [20, 20, 20, 20, 36, 36, 20, 16]


def test_an_empty_first_chunk_starts_only_vllms_clock():
    tools = read(request([(0.010, 0), (0.100, 1), (0.200, 1)]))
    assert tools["vllm"]["mean_ttft_ms"] == pytest.approx(10)
    assert tools["vllm"]["mean_tpot_ms"] == pytest.approx(190)
    assert tools["vllm"]["mean_itl_ms"] == pytest.approx(95)
    assert tools["aiperf"]["time_to_first_token"]["avg"] == pytest.approx(100)
    assert tools["guidellm"]["time_to_first_token_ms"]["successful"]["mean"] == pytest.approx(100)
    assert tools["llmperf"]["ttft_s"]["mean"] == pytest.approx(0.1)
    assert tools["mlperf"]["result_first_token_mean_latency_ns"] == 100_000_000
    assert tools["databricks"]["time_to_first_token_ms"] == pytest.approx(100)


def test_a_single_token_answer_under_a_tpot_limit():
    two = request([(0.1, 1), (9.0, 1)], identity="slow")
    tools = read(request([(0.1, 1)]), two, slo=SLO(tpot_s=1.0))
    duration = 9.0
    assert tools["vllm"]["request_goodput"] == pytest.approx(1 / duration)  # tpot taken as 0: good
    assert tools["aiperf"]["good_request_count"]["avg"] == 0  # lacks the metric: not good
    assert tools["guidellm"]["slo_attainment"] == 0.0  # left out: 0 of 1
    only = read(request([(0.1, 1)]), slo=SLO(tpot_s=1.0))
    assert only["guidellm"]["slo_attainment"] is None
    assert only["aiperf"]["inter_token_latency"] is None
    assert only["vllm"]["mean_tpot_ms"] == 0.0


def test_late_sending_counts_only_from_the_scheduled_time():
    tools = read(request([(3.0, 1), (4.0, 1)], scheduled=0.0, sent=2.0))
    assert tools["mlperf"]["result_first_token_mean_latency_ns"] == 3_000_000_000
    for name in ("vllm", "aiperf", "guidellm", "llmperf", "databricks"):
        row = next(
            row
            for row in readings(
                summarize(Trace((request([(3.0, 1), (4.0, 1)], sent=2.0),))).to_dict(), tools
            )
            if row.tool == name
        )
        assert row.ttft_ms == pytest.approx(1000)


def test_failures_and_cancellations():
    good = request([(0.1, 1), (0.2, 1)], "good")
    error = request([(0.5, 1)], "error", status="error")
    late = request([], "late", status="timeout")
    gone = request([(0.3, 1)], "gone", status="cancelled")
    tools = read(good, error, late, gone, slo=SLO(ttft_s=1.0))
    assert (tools["vllm"]["completed"], tools["vllm"]["failed"]) == (1, 3)
    assert tools["vllm"]["mean_ttft_ms"] == pytest.approx(100)
    assert tools["llmperf"]["error_rate"] == 0.75
    assert tools["llmperf"]["num_completed_requests"] == 1
    assert tools["aiperf"]["error_request_count"]["avg"] == 3
    assert tools["guidellm"]["request_totals"] == {
        "successful": 1,
        "incomplete": 1,
        "errored": 2,
        "total": 4,
    }
    assert tools["guidellm"]["slo_attainment"] == pytest.approx(1 / 3)  # cancelled is left out
    assert tools["mlperf"]["result_query_count"] == 1


def test_percentile_rules_differ_on_the_same_hundred_values():
    values = [float(i) for i in range(1, 101)]
    tools = all_dialects(Trace(tuple(request([(v, 1)], str(v)) for v in values)))
    assert tools["vllm"]["p99_ttft_ms"] == pytest.approx(1e3 * np.percentile(values, 99))  # 99010
    assert tools["aiperf"]["time_to_first_token"]["p99"] == pytest.approx(99_010)
    assert tools["llmperf"]["ttft_s"]["quantiles"]["p99"] == pytest.approx(99.01)
    assert tools["mlperf"]["result_first_token_99.00_percentile_latency_ns"] == 100 * 10**9
    block = tools["guidellm"]["time_to_first_token_ms"]["successful"]["percentiles"]
    assert block["p99"] == pytest.approx(99_000)
    assert block["p50"] == pytest.approx(50_000)


def test_standard_deviations_differ():
    tools = read(request([(1.0, 1)], "a"), request([(3.0, 1)], "b"))
    assert tools["vllm"]["std_ttft_ms"] == pytest.approx(1000)
    assert tools["aiperf"]["time_to_first_token"]["std"] == pytest.approx(1000)
    assert tools["llmperf"]["ttft_s"]["stddev"] == pytest.approx(math.sqrt(2))


def test_guidellm_weighs_by_tokens():
    short = request([(1.0, 1), (2.0, 1)], "short")  # 1000 ms a token, weight 1
    long = request([(1.0, 1), (1.9, 9)], "long")  # 100 ms a token, weight 9
    tools = read(short, long)
    assert tools["guidellm"]["inter_token_latency_ms"]["successful"]["mean"] == pytest.approx(190)
    assert tools["aiperf"]["inter_token_latency"]["avg"] == pytest.approx(550)


def test_mlperf_validity_needs_enough_samples():
    slo = SLO(ttft_s=2.0)
    for count, enough in ((458, False), (459, True)):
        trace = Trace(tuple(request([(1.0, 1), (1.5, 1)], str(i)) for i in range(count)))
        report = DIALECTS["mlperf"](trace, slo)
        assert report["result_perf_constraints_met"] is True
        assert report["early_stopping_met"] is enough


def test_throughputs_and_token_totals():
    tools = read(request([(1.0, 4)], "a"), request([(4.0, 4)], "b", scheduled=2.0))
    assert tools["vllm"]["duration"] == 4.0
    assert tools["vllm"]["output_throughput"] == 2.0
    assert tools["vllm"]["total_token_throughput"] == 3.5
    assert tools["vllm"]["request_throughput"] == 0.5
    assert tools["llmperf"]["num_completed_requests_per_min"] == 30.0
    assert tools["mlperf"]["result_completed_samples_per_sec"] == 0.25  # n - 1


def test_a_trace_without_requests_or_answers_is_read_without_an_error():
    for trace in (Trace(()), Trace((request([]),)), Trace((request([], status="error"),))):
        json.dumps(all_dialects(trace, SLO(ttft_s=1.0, tpot_s=1.0)), allow_nan=False)


@given(traces(), st.floats(0.01, 20))
def test_every_report_is_json_and_no_reading_is_negative(trace, limit_s):
    slo = SLO(ttft_s=limit_s, tpot_s=limit_s, e2e_s=limit_s)
    reports = all_dialects(trace, slo)
    json.dumps(reports, allow_nan=False)
    for row in readings(summarize(trace, slo).to_dict(), reports):
        assert row.ttft_ms is None or row.ttft_ms >= 0
        assert row.per_token_ms is None or row.per_token_ms >= -1e-6


@given(traces(statuses=("ok",)))
def test_three_names_for_one_quantity(trace):
    """vLLM's TPOT, AIPerf's ITL and ours agree when no chunk is empty and all were sent on time."""
    clean = Trace(
        tuple(
            Request(r.id, r.sent, r.sent, 1, [event for event in r.events if event[1] > 0])
            for r in trace.requests
        )
    )
    ours = summarize(clean).tpot_s.mean
    if ours is not None:
        reports = all_dialects(clean)
        assert reports["vllm"]["mean_tpot_ms"] == pytest.approx(1e3 * ours, abs=1e-6)
        assert reports["aiperf"]["inter_token_latency"]["avg"] == pytest.approx(
            1e3 * ours, abs=1e-6
        )
