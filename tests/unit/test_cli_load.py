"""`inferlab load` against a server with known delays: table, JSON, traces, exit codes."""

import json

import pytest

from inferlab.cli import app
from inferlab.client.mock import MockServer
from inferlab.trace import load_trace


@pytest.fixture(scope="module")
def mock():
    with MockServer(ttft_s=0.005, itl_s=0.002) as server:
        yield server


@pytest.fixture
def load(capsys, mock):
    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            app.main(["load", "--url", mock.url, "--output-len", "6", *map(str, arguments)])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def trusting(monkeypatch):
    """A busy machine voids runs; here it is about all the rest."""
    from inferlab.client import result

    judge = result.judge

    def lenient(*values):
        return judge(*values[:-1], result.Limits(late_s=9.0, idle_ratio=9.0))

    monkeypatch.setattr(result, "judge", lenient)


def test_one_run_as_json_with_its_trace(load, tmp_path):
    path = tmp_path / "t.jsonl.gz"
    code, out, err = load(
        "--model", "m", "--rate", 100, "--num-requests", 12, "--arrivals", "gamma", "--cv", 2,
        "--slo-ttft-ms", 5000, "--slo-tpot-ms", 1000, "--save-trace", path, "--json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["inferlab"]["counts"]["ok"] == 12
    assert report["inferlab"]["ttft_from_sent_s"]["min"] > 0.0045
    assert report["inferlab"]["goodput"]["attainment_ratio"] == 1
    assert report["client"]["valid"] and report["client"]["sends"] == 12
    assert report["plan"]["arrivals"] == "gamma" and report["errors"] == {}
    trace = load_trace(path)
    assert len(trace.requests) == 12 and trace.meta["plan"]["arrival_cv"] == 2


def test_a_closed_loop_as_a_table(load):
    code, out, err = load("--model", "no-usage", "--concurrency", 2, "--num-requests", 4,
                          "--no-extensions")  # fmt: skip
    assert code == 0, err
    for words in ("closed loop of 2", "4/4", "one token a chunk is assumed", "sends late"):
        assert words in out


def test_a_sweep_and_its_traces(load, tmp_path):
    code, out, err = load(
        "--model", "m", "--rates", "40,80", "--num-requests", 5,
        "--save-trace", tmp_path / "s.jsonl",
    )  # fmt: skip
    assert code == 0, err
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["s-00-40rps.jsonl", "s-01-80rps.jsonl"]
    first, second = (load_trace(tmp_path / name) for name in names)
    assert first.meta["plan"]["seed"] != second.meta["plan"]["seed"]


def test_the_highest_rate_within_an_slo(load):
    code, out, err = load(
        "--model", "m", "--max-rate", "--rate", 20, "--num-requests", 2, "--precision", 1,
        "--slo-ttft-ms", 1, "--json",
    )  # fmt: skip
    assert code == 1 and "no rate met the SLO" in err  # nothing comes within 1 ms
    report = json.loads(out)
    assert report["max_rate_req_per_s"] is None and not report["complete"]
    assert report["points"][-1]["plan"]["rate_req_per_s"] > 0.1  # it does not go on for ever


def test_a_void_run_is_reported_and_fails(load, monkeypatch):
    from inferlab.client import honesty, result

    strict = honesty.Limits(late_s=-1.0)
    monkeypatch.setattr(result, "judge", lambda *v: honesty.judge(*v[:-1], strict))
    code, out, err = load("--model", "m", "--rate", 100, "--num-requests", 5, "--json")
    assert code == 1 and "the run is void: 5 of 5 requests left" in err
    assert json.loads(out)["client"]["valid"] is False
