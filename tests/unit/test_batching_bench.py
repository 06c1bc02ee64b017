"""Cases of lab 40 measure what they predict; tables and figures are made of their record."""

import dataclasses
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from batching_examples import LIMITS, LOADS, SIZE, small_record
from tiny_models import tiny

from inferlab import plot_batching, plots
from inferlab.batching import bench, cost, tables
from inferlab.batching.simulate import StepTimes
from inferlab.claims import judge, load_ledger
from inferlab.errors import UserError
from inferlab.models.load import load_decoder
from inferlab.records import Record, write_record
from inferlab.serving.batcher import NONE, dynamic, static
from inferlab.serving.waits import batches_of, waits_s
from inferlab.workload import unequal_batch

TIMES = StepTimes({4: 0.002, 16: 0.005}, {1: 0.001, 4: 0.0013})


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(tiny(), "float32", "cpu", "random")


@pytest.fixture(scope="module")
def found(decoder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "RANGE_RUNS", 10)
        return small_record(decoder)


@pytest.fixture(scope="module")
def record(found) -> Record:
    return found[0]


@pytest.fixture
def ax():
    _, ax = plots.figure()
    yield ax
    plt.close("all")


def test_every_case_measures_what_it_predicts_and_can_be_written(record, found, tmp_path):
    for name, info in record.manifest.cases.items():
        beside = set(info.predicted) - {"wait_low_s", "wait_high_s", "knee_batch_size"}
        floors = {key for key in beside if key.endswith(("memory_s", "compute_s"))}
        assert beside - floors - {"mbu_ratio"} <= set(record.metrics(name)), name
    write_record(record.manifest, record.samples, tmp_path, found[1])


def test_a_load_case_keeps_its_trace_and_its_emulation_beside_it(record, found):
    traces = found[1]
    assert set(traces) == {n for n in record.manifest.cases if n.startswith(("load", "mixed"))}
    trace = traces[f"load{LOADS[0]}/static"]
    assert [batch.size for batch in batches_of(trace)] == [4, 4]
    assert tables.request_rows(record) == []  # no log was kept
    logged = dataclasses.replace(record, traces=traces)
    row = next(r for r in tables.request_rows(logged)
               if (r["load"], r["policy"]) == (LOADS[0], "static"))  # fmt: skip
    assert row["requests"] == 8 and row["wait_longest_s"] == max(waits_s(trace))
    assert row["tpot_median_s"] <= row["tpot_longest_s"]
    waited_s = record.values(f"load{LOADS[0]}/static", "wait_s")[-1]
    assert np.mean(waits_s(trace)) == pytest.approx(waited_s)
    for row in tables.wait_rows(record):
        assert row["low_s"] <= row["high_s"]
        if row["policy"] == "static" and row["load"] == LOADS[0]:  # arrivals decide, not steps
            assert row["measured_s"] > 0.5 * row["emulated_s"]


def test_all_policies_of_a_round_get_the_same_arrivals(found):
    traces = found[1]
    due = [[r.scheduled for r in traces[f"load{LOADS[1]}/{p}"].requests] for p in tables.ORDER]
    assert all(times == due[0] for times in due)


def test_theory_where_there_is_one(decoder):
    traffic = bench.Traffic(4, (4,), 8, 1.2)
    workload = traffic.workload(61)
    assert "wait_s" not in bench.predict_load(workload, NONE, traffic, TIMES)  # overload
    assert "wait_s" not in bench.predict_load(workload, dynamic(4, 0.1), traffic, TIMES)
    predicted = bench.predict_load(workload, static(4), traffic, TIMES)
    assert predicted["num_batched_seen"] == pytest.approx(4)
    assert predicted["ttft_s"] == pytest.approx(predicted["wait_s"] + TIMES.prefill_at(16))
    mixed = bench.Traffic(4, (2, 2, 8), 6, 0.5)
    varied = bench.predict_load(mixed.workload(61), NONE, mixed, TIMES)["wait_s"]
    fixed = bench.Traffic(4, (4,), 6, 0.5)
    assert varied > bench.predict_load(fixed.workload(61), NONE, fixed, TIMES)["wait_s"]


def test_traffic_has_its_lengths_and_its_rate():
    traffic = bench.Traffic(4, (2, 2, 8), 7, 0.5)
    workload = traffic.workload(61)
    assert workload.batch_size == 7
    assert sorted(r.output_len for r in workload.requests) == [2, 2, 2, 2, 2, 8, 8]
    services = traffic.services_s(TIMES)
    assert traffic.rate_req_per_s(TIMES) == pytest.approx(0.5 / np.mean(services))


def test_tokens_are_checked_against_each_request_alone(decoder):
    odd = unequal_batch(61, (5, 1, 9), (2, 4, 1), seed=1)
    ways = {"a": (NONE, "padded"), "b": (static(2), "padded"), "c": (dynamic(3), "packed")}
    assert bench.check_tokens(decoder, odd, ways) == dict.fromkeys("abc", True)


def test_tables_have_a_row_a_case(record):
    frontier = tables.frontier_rows(record)
    assert [row["batch_size"] for row in frontier] == [1, 2, 4]
    assert all(
        row["step_tok_per_s"] == pytest.approx(row["batch_size"] / row["tpot_s"])
        for row in frontier
    )
    assert 1 <= tables.knee(record).value <= 4 and tables.knee(record).n == 3
    assert tables.predicted_knee(record) == 2.0
    assert tables.is_past_knee(record) in (True, False)
    loads = tables.load_rows(record)
    assert [(r["load"], r["policy"]) for r in loads] == [
        (a, p) for a in LOADS for p in tables.ORDER
    ]
    for row in tables.part_rows(record):
        parts = row["wait_s"] + row["prefill_s"] + row["steps_s"]
        assert parts == pytest.approx(row["e2e_s"])
    assert len(tables.wait_rows(record)) == 9
    prefill = {(r["mix"], r["prefill"]): r for r in tables.prefill_rows(record)}
    assert prefill["chat", "padded"]["waste_ratio"] == cost.padding_waste_ratio((2, 3, 15))
    assert prefill["chat", "packed"]["over_packed"] == 1.0
    shown = tables.of_devices([record], tables.load_rows)
    assert list(shown)[:5] == ["device", "load", "policy", "mean batch", "wait"]
    assert "TTFT" in shown and "busy per request" in shown


def test_tables_of_ceilings_alone():
    assert [row["batch size"] for row in tables.share_rows(tiny(), "float32", 8, LIMITS, (1, 4))]
    rows = tables.knee_rows(tiny(), "float32", LIMITS, (1, 64))
    assert rows[0]["context"] == 1 and all(row["knee"] for row in rows)


def test_limits_cost_at_low_load_and_are_free_in_overload():
    rows = tables.limit_rows(TIMES, 4, 4, SIZE, (0.1, 1.8))
    assert rows[0]["limit 4"] > 2
    assert rows[1]["limit 0.5"] < 1.5
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_a_record_without_a_frontier_is_refused(record):
    few = {k: v for k, v in record.manifest.cases.items() if not k.startswith("frontier")}
    left = record.samples[record.samples["case"].isin(few)]
    bare = Record(record.manifest.model_copy(update={"cases": few}), left)
    for call in (tables.frontier_rows, tables.knee):
        with pytest.raises(UserError, match="frontier"):
            call(bare)


def test_the_claim_is_judged_from_such_a_record(record):
    verdict = judge(load_ledger().get("batch-latency"), record)
    assert verdict.verdict != "untested", verdict.where


def test_figures_draw_what_the_tables_hold(record, ax):
    plot_batching.frontier(ax, tables.frontier_rows(record), tables.knee(record).value)
    labels = ax.get_legend_handles_labels()[1]
    assert labels[:2] == ["prediction", "measured"] and "knee" in labels[2]
    assert "tok/s" in ax.get_ylabel() and "ms" in ax.get_xlabel()


def test_waits_and_parts_have_a_place_a_policy(record, ax):
    plot_batching.waits(ax, tables.wait_rows(record), LOADS[0])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(tables.ORDER)
    assert ax.get_legend_handles_labels()[1] == [
        "mean of runs this short", "theory", "emulated", "measured"
    ]  # fmt: skip
    ax.clear()
    plot_batching.parts(ax, tables.part_rows(record), LOADS[1])
    assert len(ax.patches) == 12
    ax.clear()
    plot_batching.waits_by_load(ax, [0.5, 1.5], {"none": [0.5, math.inf], "dynamic": [0.1, 0.2]})
    assert ax.get_legend_handles_labels()[1] == ["none", "dynamic"]


@pytest.mark.parametrize(
    "call",
    [
        lambda ax: plot_batching.frontier(ax, []),
        lambda ax: plot_batching.waits(ax, [], 0.3),
        lambda ax: plot_batching.parts(ax, [], 0.3),
        lambda ax: plot_batching.waits_by_load(ax, [], {}),
    ],
)
def test_nothing_to_draw_is_refused(ax, call):
    with pytest.raises(UserError):
        call(ax)
