"""A server as a process: what signals do to it, whether it grows, and what its command refuses.

INFERLAB_SOAK_S=600 makes the run under mixed load as long as it should be before a release.
"""

import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from hostile import ROOT, only_error
from server_examples import http_post, open_stream, rest_of, status_and_error

pytestmark = pytest.mark.timeout(120)
SOAK_S = float(os.environ.get("INFERLAB_SOAK_S", "20"))
ANYWHERE = "0.0.0.0"  # noqa: S104 - named, and for a moment listened on, to see the warning


@pytest.fixture
def process(request):
    """A server as a process of its own, of the scripted engine or the tiny one: (process, port)."""
    kind = getattr(request, "param", "scripted")
    command = [sys.executable, str(ROOT / "tests" / "unit" / "server_examples.py"), kind]
    one = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    line = one.stdout.readline()
    assert line.startswith("serving tiny at http://127.0.0.1:"), one.communicate(timeout=5)
    yield one, int(line.rpartition(":")[2])
    one.kill()
    one.communicate()


def test_sigterm_lets_answers_finish_and_takes_no_new_ones(process):
    one, port = process
    raw = open_stream(port)
    one.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as late:
        late.sendall(http_post("/v1/completions", b'{"model": "tiny", "prompt": [1]}'))
        status, error, headers = status_and_error(late)
    assert status == 503 and "stopping" in error["message"] and headers["retry-after"]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as late:
        late.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert late.recv(65536).startswith(b"HTTP/1.1 503 ")
    data = rest_of(raw)
    assert data.count(b'"finish_reason":"length"') == 1 and b"[DONE]" in data
    assert one.wait(20) == 0 and one.stderr.read() == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(process, number):
    one, _ = process
    one.send_signal(number)
    assert one.wait(10) == 0 and one.stderr.read() == ""


def test_a_second_signal_cuts_off_and_says_so(process):
    one, port = process
    raws = [open_stream(port, max_tokens=100) for _ in range(2)]
    one.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    one.send_signal(signal.SIGINT)
    for raw in raws:
        assert b'"server is stopping"' in rest_of(raw).replace(b"the ", b"")
    assert one.wait(20) == 1
    assert one.stderr.read() == "error: stopped while 2 requests were not answered\n"


def test_clients_that_hang_up_while_they_send_are_no_news(process):
    one, port = process
    head = b"POST /v1/completions HTTP/1.1\r\nhost: tiny\r\ncontent-length: 500000\r\n\r\n"
    for sent in (b"", b"{", b"x" * 100_000):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            raw.sendall(head + sent)
            time.sleep(0.1)
    gone = 'inferlab:request_disconnected_total{model_name="tiny"} 3.0'
    assert gone in metrics_page(port)
    one.send_signal(signal.SIGTERM)
    assert one.wait(20) == 0 and one.stderr.read() == ""


# Mixed load


def one_of_all_kinds(port, dice):
    """A request of some kind; its status, or how its client behaved."""
    kind = dice.choice(("stream", "whole", "gone", "bad", "slow", "chat", "unknown"))
    shared = [7] * dice.choice((0, 20, 40))  # so that prefixes are found again
    prompt = shared + [dice.randrange(61) for _ in range(dice.randrange(1, 20))]
    body = {"model": "other" if kind == "unknown" else "tiny", "prompt": prompt,
            "max_tokens": -1 if kind == "bad" else dice.randrange(1, 60),
            "stream": kind in ("stream", "slow", "gone")}  # fmt: skip
    path = "/v1/completions"
    if kind == "chat":
        path = "/v1/chat/completions"
        content = " ".join(map(str, body.pop("prompt")))
        body["messages"] = [{"role": "user", "content": content}]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.sendall(http_post(path, json.dumps(body).encode()))
        if kind == "gone":
            time.sleep(dice.random() / 50)
            return kind
        if kind == "slow":
            time.sleep(dice.random() / 10)
        response = http.client.HTTPResponse(raw)
        response.begin()
        content = response.read()
        assert b'"server_error"' not in content
        assert response.status != 200 or kind not in ("stream", "slow") or b"[DONE]" in content
        return response.status


@pytest.mark.parametrize("process", ["tiny"], indirect=True)
@pytest.mark.timeout(2 * SOAK_S + 100)
def test_mixed_load_does_not_make_memory_grow(process):
    one, port = process
    watched, until = psutil.Process(one.pid), time.monotonic() + SOAK_S
    outcomes = []

    def client(seed):
        dice = random.Random(seed)  # noqa: S311
        while time.monotonic() < until:
            outcomes.append(one_of_all_kinds(port, dice))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client, seed) for seed in range(16)]
        time.sleep(SOAK_S / 2)
        early_bytes, early_count = watched.memory_info().rss, len(outcomes)
        for each in clients:
            each.result()
    grown_bytes, count = watched.memory_info().rss - early_bytes, len(outcomes) - early_count
    assert set(outcomes) == {200, 400, 404, 429, "gone"}
    page = metrics_page(port)
    for name in ("running", "waiting"):
        assert f'inferlab:num_requests_{name}{{model_name="tiny"}} 0.0' in page
    assert grown_bytes < 8e6, f"{grown_bytes / 1e6:.1f} MB more after {count} requests more"
    one.send_signal(signal.SIGTERM)
    assert one.wait(20) == 0


def metrics_page(port):
    """/metrics, once the engine has heard of the last client that hung up."""
    time.sleep(0.3)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    return page


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "gpt-4"], "gpt-4"),
        (["--host", "no.such.host.invalid"], "is no address of this machine"),
        (["--host", "203.0.113.7"], "cannot listen at 203.0.113.7"),
        (["--policy", "magic"], "unknown --policy"),
        (["--weights", "imaginary"], "unknown weights"),
        (["--cache-tokens", "3"], "less than one block"),
        (["--port", "70000"], "65535"),
        (["--max-num-seqs", "0"], "max-num-seqs"),
        (["--dtype", "int3"], "int3"),
        (["--device", "toaster"], "toaster"),
        (["--step", "leap"], "leap"),
        (["--threads", "0"], "threads"),
    ],
)
def test_wrong_options_end_with_one_line(call, arguments, words):
    code, out, err = call("serve", "--port", "0", *arguments)
    assert code == 2 and out == "" and words in only_error(err)


@pytest.mark.parametrize("name", ["fastapi", "prometheus_client"])
def test_a_missing_package_is_named(call, monkeypatch, name):
    find = importlib.util.find_spec
    hidden = (name,)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in hidden else find(n))
    code, _, err = call("serve", "--port", "0")
    assert code == 2 and f"serving needs {name.replace('_', '-')}: `pip" in only_error(err)


def test_a_taken_port_is_said_before_the_model_is_loaded(call):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, _, err = call("serve", "--port", other.getsockname()[1])
    assert code == 2 and "is another server there?" in only_error(err)


@contextlib.contextmanager
def served(*arguments, **options):
    """(process, the line it prints when it is ready) of `inferlab serve`; killed at the end."""
    command = [sys.executable, "-m", "inferlab", "serve", "--port", "0", "--threads", "1",
               "--cache-tokens", "1024", *arguments]  # fmt: skip
    one = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
    )
    try:
        yield one, one.stdout.readline()
    finally:
        if one.poll() is None:
            for process in [*psutil.Process(one.pid).children(), one]:
                process.kill()
            one.communicate()


def test_the_command_serves_the_model_and_ends_with_0():
    with served("--host", ANYWHERE) as (one, line):
        port = int(line.rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = {"model": "smollm2-135m", "prompt": "The capital of France is", "max_tokens": 3}
        connection.request("POST", "/v1/completions", json.dumps(body | {"temperature": 0}))
        answer = connection.getresponse().read()
        connection.close()
        one.send_signal(signal.SIGTERM)
        out, err = one.communicate(timeout=30)
    assert line == f"serving smollm2-135m at http://0.0.0.0:{port}\n"
    assert json.loads(answer)["choices"][0]["text"].startswith(" Paris"), answer
    assert one.returncode == 0 and out == ""
    assert err.startswith("0.0.0.0 is not the loopback") and err.count("\n") == 1
    host = socket.gethostname()
    assert host not in answer.decode() and str(ROOT) not in answer.decode()


def long_answer(line, max_tokens=900):
    """A raw connection on which the command streams an answer."""
    port = int(line.rpartition(":")[2])
    return open_stream(port, model="smollm2-135m", max_tokens=max_tokens, ignore_eos=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_listens_here_only_and_drains(number):
    """SIGINT goes to the whole group, as Ctrl-C in a terminal does: to the engine too."""
    with served(start_new_session=True) as (one, line):
        sockets = psutil.Process(one.pid).net_connections("tcp")
        listening = [each.laddr for each in sockets if each.status == "LISTEN"]
        raw = long_answer(line, max_tokens=40)
        if number == signal.SIGINT:
            os.killpg(one.pid, number)
        else:
            one.send_signal(number)
        data = rest_of(raw)
        out, err = one.communicate(timeout=30)
    assert listening == [("127.0.0.1", int(line.rpartition(":")[2]))]
    assert b'"finish_reason":"length"' in data and b"[DONE]" in data
    assert (one.returncode, out, err) == (0, "", "")


def test_an_engine_that_is_killed_ends_the_server_and_its_answers():
    with served() as (one, line):
        raw = long_answer(line)
        (engine,) = psutil.Process(one.pid).children()
        engine.kill()
        assert b"the engine failed while it worked on this request" in rest_of(raw)
        out, err = one.communicate(timeout=30)
    assert one.returncode == 1 and out == ""
    assert "its process was killed, as happens when memory runs out" in only_error(err)


def test_two_signals_end_a_server_whose_engine_hangs():
    with served() as (one, line):
        raw = long_answer(line)
        (engine,) = psutil.Process(one.pid).children()
        engine.suspend()
        for _ in range(2):
            one.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert b"the server is stopping" in rest_of(raw)
        out, err = one.communicate(timeout=30)
    assert one.returncode == 1 and out == ""
    assert "stopped while 1 requests were not answered" in only_error(err)
    assert not engine.is_running()


def test_no_engine_outlives_a_server_that_is_killed():
    with served() as (one, _):
        (engine,) = psutil.Process(one.pid).children()
        one.kill()
        one.communicate(timeout=30)
    engine.wait(20)
    assert not engine.is_running()
