"""What a sweep or a search has measured is printed and saved, whatever ends it."""

import json
import threading
import time

import pytest
from client_examples import scripted

from inferlab.cli import app
from inferlab.client import result
from inferlab.client.mock import MockServer
from inferlab.load import plan, point
from inferlab.trace import load_trace

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 64\r\n\r\n"
    b'data: {"choices": [{"text": " a", "finish_reason": "length"}]}\n\n'
)


@pytest.fixture(scope="module")
def mock():
    with MockServer(ttft_s=0.005, itl_s=0.002) as server:
        yield server


@pytest.fixture(autouse=True)
def verdicts(monkeypatch):
    """Every run is trusted, but for those (counted from the warm-up on) whose number is here."""
    void, numbers, judge = set(), iter(range(99)), result.judge

    def ruled(*values):
        late_s = -1.0 if next(numbers) in void else 9.0
        return judge(*values[:-1], result.Limits(late_s=late_s, idle_ratio=9.0, late_ratio=0.5))

    monkeypatch.setattr(result, "judge", ruled)
    return void


@pytest.fixture
def load(capsys, mock, tmp_path):
    def call(*arguments, url=mock.url):
        words = ["load", "--url", url, "--model", "m", "--output-len", "4", "--no-extensions"]
        with pytest.raises(SystemExit) as caught:
            app.main([*words, "--save-trace", str(tmp_path / "s.jsonl"), *map(str, arguments)])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


def saved(folder):
    return [load_trace(path) for path in sorted(folder.glob("s-*.jsonl"))]


def test_a_rate_that_cannot_be_planned_ends_a_search(load, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_REQUESTS", 60)
    search = ("--max-rate", "--rate", 40, "--duration-s", 0.5, "--arrivals", "constant")
    code, out, err = load(*search, "--slo-ttft-ms", 5000, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["max_rate_req_per_s"], report["failing_rate_req_per_s"]) == (80, None)
    assert not report["complete"] and "160 req/s" in report["why"]
    assert "160 req/s was not tried: a load has 1 to 60 requests" in err
    assert len(saved(tmp_path)) == len(report["points"]) == 2
    code, out, err = load(*search, "--slo-ttft-ms", 5000)
    assert code == 0 and "the search is incomplete, it ended at 160 req/s" in out


def test_a_rate_that_cannot_be_planned_ends_a_sweep(load, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_REQUESTS", 60)
    sweep = ("--sweep", "--rate", 40, "--duration-s", 0.5, "--arrivals", "constant", "--json")
    code, out, err = load(*sweep)
    assert code == 0 and "160 req/s was not tried: a load has 1 to 60 requests" in err
    assert len(json.loads(out)["points"]) == len(saved(tmp_path)) == 2


def test_a_listed_rate_that_cannot_be_planned_is_refused_at_once(load, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_REQUESTS", 60)
    code, out, err = load("--rates", "40,400", "--duration-s", 0.3)
    assert (code, out) == (2, "") and "1 to 60 requests, not 120" in err and not saved(tmp_path)


@pytest.mark.parametrize("how", [("--rates", "40,80"), ("--max-rate", "--slo-ttft-ms", 5000)])
def test_ctrl_c_while_the_next_point_is_prepared(load, tmp_path, monkeypatch, how):
    prepared, prepare = [], point.prepare

    def interrupted(one):
        prepared.append(one)
        if len(prepared) == 3:  # after the warm-up and the first point
            raise KeyboardInterrupt
        return prepare(one)

    monkeypatch.setattr(point, "prepare", interrupted)
    code, out, err = load(*how, "--num-requests", 5, "--json")
    assert code == 130 and "interrupted" in err
    report = json.loads(out)
    assert len(report["points"]) == len(saved(tmp_path)) == 1
    assert "--max-rate" not in how or report["why"] == "interrupted"


def test_a_trace_that_cannot_be_saved_does_not_cost_the_table(load, tmp_path, monkeypatch):
    from inferlab import trace

    def full(*_):
        raise trace.TraceError("disk full")

    monkeypatch.setattr(trace, "save_trace", full)
    code, out, err = load("--rates", "40,80", "--num-requests", 5)
    assert code == 2 and "disk full" in err and "5/5" in out


def test_a_sweep_doubles_from_the_command_line(load, tmp_path):
    code, out, err = load("--sweep", "--rate", 40, "--num-requests", 6, "--json")
    assert code == 0, err
    rates = [one["plan"]["rate_req_per_s"] for one in json.loads(out)["points"]]
    assert len(rates) >= 2 and rates == [40 * 2**n for n in range(len(rates))]
    assert len(saved(tmp_path)) == len(rates)


def test_a_search_that_finds_the_rate_of_a_server_with_one_worker(load, tmp_path):
    worker = threading.Lock()

    def play(connection, number):
        while connection.recv(65536):
            with worker:
                time.sleep(0.01)
            connection.sendall(ANSWER)

    with scripted(play) as url:
        code, out, err = load(
            "--max-rate", "--rate", 20, "--num-requests", 60, "--precision", 1,
            "--slo-ttft-ms", 100, url=url,
        )  # fmt: skip
        assert code == 0 and "incomplete" not in out, (out, err)
        code, out, err = load(
            "--max-rate", "--rate", 20, "--num-requests", 60, "--precision", 1,
            "--slo-ttft-ms", 100, "--json", url=url,
        )  # fmt: skip
    report = json.loads(out)
    assert report["complete"] and 20 <= report["max_rate_req_per_s"] <= 160
    assert report["failing_rate_req_per_s"] == 2 * report["max_rate_req_per_s"]


def test_a_void_rate_in_the_middle_of_a_sweep_fails(load, verdicts):
    verdicts |= {2, 3}  # both tries of the second rate
    code, out, err = load("--rates", "40,80,60", "--num-requests", 5, "--json")
    assert code == 1 and "the run at 80 req/s is void: 5 of 5 requests left" in err
    assert [one["client"]["valid"] for one in json.loads(out)["points"]] == [1, 0, 0, 1]


def test_a_void_run_that_was_sound_the_second_time_does_not(load, verdicts):
    verdicts.add(2)
    code, out, err = load("--rates", "40,80,60", "--num-requests", 5, "--json")
    assert code == 0 and len(json.loads(out)["points"]) == 4, err


def test_a_closed_loop_that_runs_out_of_requests_says_so(load, monkeypatch):
    monkeypatch.setattr(plan, "MOST_OF_USERS", 6)
    closed = ("--concurrency", 2, "--duration-s", 5)
    code, out, err = load(*closed)
    assert code == 0 and "all 6 requests that were ready were sent before 5 s were over" in out
    code, out, err = load(*closed, "--json")
    assert json.loads(out)["ran_out"]
    code, out, err = load("--concurrency", 2, "--duration-s", 5, "--num-requests", 4, "--json")
    assert not json.loads(out)["ran_out"]  # so many were asked for
