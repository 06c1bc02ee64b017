"""The calibration page's tables and sentences about the load client, from small records."""

from __future__ import annotations

import pandas as pd
import pytest
from record_examples import NOON, cpu_machine

from inferlab.records import CaseInfo, Manifest, Record
from inferlab.underload import honestpages

CALIBRATION = {
    "events_per_s": 4900.0, "ttft_error_median_s": 2e-4, "ttft_error_max_s": 1.5e-3,
    "itl_error_median_s": 1e-4, "itl_error_p99_s": 1e-3, "itl_error_max_s": 9e-3,
    "client_cpu_ratio": 0.31, "void_count": 0.0,
}  # fmt: skip


def record(cases: dict[str, tuple[dict, dict]], lab: str = honestpages.LAB) -> Record:
    """A record of cases: parameters, and the value of each metric in every round of three."""
    rows = [
        (case, metric, value, index, "ok")
        for case, (_, values) in cases.items()
        for metric, value in values.items()
        for index in range(3)
    ]
    samples = pd.DataFrame(rows, columns=["case", "metric", "value", "round", "status"])
    infos = {case: CaseInfo(params=params, block="b") for case, (params, _) in cases.items()}
    manifest = Manifest(
        lab=lab, device="cpu-example-2c", status="complete", code_hash="0" * 64,
        machine=cpu_machine(), models=[], started=NOON, ended=NOON, cases=infos,
    )  # fmt: skip
    return Record(manifest, samples, {})


def client(streams: int, **changes: float) -> tuple[dict, dict]:
    return {"phase": "client", "streams": streams}, {**CALIBRATION, **changes}


def test_a_client_within_the_goal():
    capacity = ({"phase": "client-capacity"},
                {"within_events_per_s": 2e4, "tried_events_per_s": 2e4})  # fmt: skip
    found = record({"client/200": client(200), "capacity": capacity})
    table = honestpages.client_errors([found])
    assert table.loc[0, "TTFT, median"] == "0.20 ms" and table.loc[0, "TTFT, p99"] == "–"
    assert table.loc[0, "streams"] == 200 and table.loc[0, "core of the client"] == "31%"
    said = honestpages.client_verdict(found)
    assert "1 of 1 rows are within the goal" in said
    assert "20,000 a second (the highest that was tried)" in said


@pytest.mark.parametrize(
    "change",
    [
        {"ttft_error_median_s": 1.1e-3},
        {"ttft_error_max_s": 2.1e-3},  # no p99: the largest stands for it
        {"itl_error_p99_s": 2.1e-3},
        {"void_count": 1.0},
    ],
)
def test_one_miss_is_told(change):
    found = record({"a": client(1), "b": client(200, **change)})
    assert "1 of 2 rows are within the goal" in honestpages.client_verdict(found)


def pair(name: str, concurrency: int, ours: float, theirs: float) -> dict:
    params = {"reported_as": name, "concurrency": concurrency, "server": "inferlab"}
    stem = f"inferlab-c{concurrency}-{name}"
    return {
        f"{stem}-ours": ({**params, "client": "inferlab"}, {"ttft_s": ours, "tpot_s": 0.01}),
        stem: ({**params, "client": name}, {"ttft_s": theirs, "tpot_s": 0.0101}),
    }


def test_other_load_generators_stand_beside_ours():
    found = record({**pair("aiperf", 1, 0.05, 0.051), **pair("guidellm", 4, 0.05, 0.06)})
    table = honestpages.peers([found])
    assert list(table["agrees"]) == ["yes", "yes", "no", "yes"]
    assert list(table["theirs / ours"]) == ["1.020", "1.010", "1.200", "1.010"]
    assert table.loc[0, "ours, in its words"] == "50.00 ms"
    said = honestpages.peers_verdict(found)
    assert "3 of 4 medians agree within 5%" in said
    assert "TTFT of GuideLLM at concurrency 4, 1.200 of ours" in said


def test_what_each_adds_by_itself():
    values = {"ttft_error_s": 5e-4, "tpot_error_s": -1e-6, "logged_ttft_s": 0.05}
    params = {"phase": "known-delays", "client": "vllm", "concurrency": 1}
    table = honestpages.known_delays([record({"a": (params, values)})])
    assert table.loc[0, "load generator"] == "vLLM bench"
    assert table.loc[0, "reported − true TTFT"] == "0.50 ms"


def test_nothing_recorded_is_empty_and_other_labs_are_left_out():
    other = record({"a": ({"phase": "sweep"}, {"ttft_s": 1.0})})
    for table in (honestpages.client_errors, honestpages.known_delays, honestpages.peers):
        assert table([other]).empty and table([]).empty
    assert honestpages.client_verdict(other) == honestpages.peers_verdict(other) == ""
    assert honestpages.loaded([other, record({}, lab="02_roofline")]) == [other]
