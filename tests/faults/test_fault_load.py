"""`inferlab load` when the server fails, the reader leaves, or somebody wants it to end."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hostile import only_error, the_error

from inferlab.client.mock import MockServer
from inferlab.trace import load_trace


@pytest.fixture(scope="module")
def mock():
    with MockServer(ttft_s=0.01, itl_s=0.003) as server:
        yield server


class Load:
    """`inferlab load` as a process of its own."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inferlab", "load", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs tests in its background ignores Ctrl-C, and so would this one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def end(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)])
def test_ctrl_c_and_sigterm_save_what_there_is(mock, tmp_path, signals):
    path = tmp_path / "partial.jsonl"
    mock.log()
    load = Load(
        "--url", mock.url, "--model", "m", "--rate", 50, "--num-requests", 3000,
        "--output-len", 8, "--save-trace", path, "--json",
    )  # fmt: skip
    seen = 0
    while seen < 20:  # it is well past its warm-up
        time.sleep(0.05)
        seen += len(mock.log())
    for one in signals:  # `timeout` sends its own twice
        load.process.send_signal(one)
        time.sleep(0.005)
    code, out, err = load.end()
    assert code == 130 and "interrupted" in the_error(err)
    trace = load_trace(path)
    assert 0 < len(trace.requests) < 3000 and trace.meta["interrupted"]
    assert len(trace.requests) + trace.meta["unsent"] == 3000
    report = json.loads(out)
    assert report["interrupted"] and report["unsent"] == trace.meta["unsent"]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_a_sweep_keeps_the_finished_points(mock, tmp_path, times):
    load = Load(
        "--url", mock.url, "--model", "m", "--rates", "50,40", "--num-requests", 5,
        "--output-len", 300, "--save-trace", tmp_path / "s.jsonl", "--json",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("s-00-*.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    mock.log()
    while not mock.log():  # the second rate has begun
        time.sleep(0.02)
    for _ in range(times):
        load.process.send_signal(signal.SIGINT)
    code, out, err = load.end()
    assert code == 130 and "interrupted" in the_error(err)
    points = json.loads(out)["points"]
    assert not points[0]["interrupted"] and points[0]["inferlab"]["counts"]["ok"] == 5
    traces = [load_trace(path) for path in sorted(tmp_path.glob("s-*.jsonl"))]
    assert len(traces) == len(points) and len(traces[0].requests) == 5


def test_a_reader_that_goes_away_costs_no_trace(mock, tmp_path):
    path = tmp_path / "t.jsonl"
    load = Load("--url", mock.url, "--model", "m", "--rate", 50, "--num-requests", 5,
                "--save-trace", path, "--json")  # fmt: skip
    load.process.stdout.close()  # `| head -1` that has ended
    err = load.process.stderr.read()
    load.process.stderr.close()
    assert load.process.wait(60) == 1 and "Traceback" not in err
    assert len(load_trace(path).requests) == 5


def test_a_server_that_dies_leaves_a_readable_trace(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    with MockServer(ttft_s=0.01, itl_s=0.01) as server:
        load = Load("--url", server.url, "--model", "m", "--rate", 25, "--num-requests", 60,
                    "--output-len", 20, "--save-trace", path, "--json")  # fmt: skip
        seen = 0
        while seen < 15:
            time.sleep(0.05)
            seen += len(server.log())
        os.kill(server.pid, signal.SIGKILL)
        code, out, err = load.end()
    assert code in (0, 1) and "Traceback" not in err, err  # 1: the machine was too busy
    trace, report = load_trace(path), json.loads(out)
    assert len(trace.requests) == 60 and {r.status for r in trace.requests} == {"ok", "error"}
    assert report["inferlab"]["counts"]["failed"] == sum(r.status != "ok" for r in trace.requests)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "http-500", "--rate", "50"), 1, "every warm-up request failed"),
        (("--model", "http-429", "--rate", "50", "--warmup", "0"), 1, "every request failed"),
        (("--model", "m"), 2, "choose one of --rate"),
        (("--model", "m", "--rate", "1", "--concurrency", "2"), 2, "not --rate and --concurrency"),
        (("--model", "m", "--rate", "0"), 2, "rate must be above 0"),
        (("--model", "m", "--max-rate"), 2, "needs an SLO"),
        (("--model", "m", "--sweep", "--rates", "1,x"), 2, "--rates needs numbers"),
        (("--model", "m", "--rate", "1", "--arrivals", "tides"), 2, "unknown arrivals"),
        (("--model", "m", "--rate", "1", "--lengths", "long"), 2, "unknown lengths"),
        (("--model", "m", "--rate", "1", "--lengths", "no.csv"), 2, "cannot read no.csv"),
        (("--model", "m", "--rate", "1", "--api", "chat"), 2, "need a tokenizer"),
        (("--model", "m", "--rate", "1", "--api", "voice"), 2, "unknown API"),
        (("--model", "m", "--rate", "1", "--save-trace", "/proc/no/t.jsonl"), 2, "/proc/no"),
        (("--model", "m", "--rate", "1", "--slo-ttft-ms", "-1"), 2, "above zero"),
        (("--model", "m", "--rate", "1", "--duration-s", "0.000001"), 2, "no request is due"),
        (("--model", "m", "--rate", "1", "--num-requests", "100000"), 2, "events of a trace"),
    ],
)  # fmt: skip
def test_load_fails_in_one_line(mock, call, arguments, code, words):
    got, out, err = call("load", "--url", mock.url, "--num-requests", 3, *arguments)
    assert got == code and words in the_error(err), err
    if code == 2:
        assert out == "" and only_error(err)


def test_a_url_that_is_none(call):
    for url in ("localhost:8000", "http://", "file:///etc/passwd", "http://h\n", "http://a..b"):
        code, out, err = call("load", "--url", url, "--model", "m", "--rate", 1)
        assert (code, out) == (2, "") and "no address of a server" in only_error(err)
