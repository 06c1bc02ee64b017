"""Pages show what records say, and nothing in a record can become markup."""

from __future__ import annotations

import pandas as pd
import record_examples as examples

from inferlab import pages
from inferlab.records import CaseInfo, Record
from inferlab.stats import Estimate


def record(**changes) -> Record:
    return Record(manifest=examples.manifest(**changes), samples=examples.samples())


def test_ratio_is_predicted_over_measured():
    table = pages.predictions(record()).set_index("case")
    row = table.loc["hf/bs=1"]
    assert row["ratio"] == row["predicted"] / row["measured"]
    assert row["error_ratio"] == abs(row["ratio"] - 1)


def test_a_case_lost_for_memory_is_no_prediction_error():
    assert "torch/bs=1024" not in set(pages.predictions(record())["case"])


def test_summary_counts_misses_beyond_a_factor_of_two():
    summary = pages.prediction_summary([record()])
    table = pages.predictions(record())
    missed = ((table["ratio"] > 2) | (table["ratio"] < 0.5)).sum()
    assert list(summary["off by more than 2×"]) == [missed]
    assert list(summary["cases"]) == [2]


def test_summary_has_one_statistic_of_a_quantity(monkeypatch):
    metrics = ["tpot_median_s", "tpot_p95_s", "tpot_max_s", "ttft_p95_s", "e2e_mean_s", "tpot_s"]
    table = pd.DataFrame({"metric": metrics, "ratio": 1.0, "error_ratio": 0.0})
    monkeypatch.setattr(pages, "predictions", lambda _: table)
    kept = ["tpot_median_s", "ttft_p95_s", "e2e_mean_s", "TPOT"]
    assert list(pages.prediction_summary([record()])["quantity"]) == kept


def test_markup_in_a_record_stays_text():
    hostile = "<script>alert(1)</script>"
    html = pages.html_table(pd.DataFrame({hostile: [hostile]}), hostile).data
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") == 3


def test_hostile_model_name_is_shown_as_text():
    stamp = examples.ModelStamp(name="<b>x</b>", weights="random")
    html = pages.html_table(pages.runs([record(models=[stamp])])).data
    assert "<b>" not in html


def test_devices_with_gpus_come_first():
    gpu = record(machine=examples.gpu_machine(), device="nvidia-h200")
    assert list(pages.by_device([record(), gpu])) == ["nvidia-h200", examples.CPU_DEVICE]
    facts = dict(pages.machine_facts([gpu]).to_numpy())
    assert facts["device"] == "NVIDIA H200"


def test_harness_overhead_pairs_bare_and_bench():
    cases = {
        "hf/bs=1": CaseInfo(params={"loop": "bare", "backend": "torch"}, block="harness"),
        "torch/bs=1": CaseInfo(params={"loop": "bench", "backend": "torch"}, block="harness"),
        "torch/bs=1024": CaseInfo(params={"backend": "torch"}, block="tpot"),
    }
    table = pages.harness_overhead([record(cases=cases)])
    assert list(table["bench / bare loop"]) == ["0.5000"]
    assert list(table["rounds"]) == [6]


def test_without_records_tables_are_empty():
    assert pages.prediction_summary([]).empty
    assert pages.harness_overhead([]).empty
    assert pages.runs([]).empty


def test_the_landing_figure_draws_cases_or_says_that_there_are_none():
    figure, caption = pages.landing_figure([record()])
    assert "2 cases" in caption
    assert "2026-01-02" in caption
    assert figure.axes[0].get_xlabel().startswith("predicted (ms)")
    _, empty = pages.landing_figure([])
    assert "no record" in empty


def test_a_ratio_has_an_interval_where_rounds_differ():
    assert pages.ratio_interval(Estimate(1.954, 1.668, 2.009, 3)) == "1.95x [1.67, 2.01]"
    assert pages.ratio_interval(Estimate(2.0, 2.0, 2.0, 3)) == "2.00x"
    assert pages.ratio_interval(Estimate(2.0, float("nan"), float("nan"), 2)) == "2.00x"
