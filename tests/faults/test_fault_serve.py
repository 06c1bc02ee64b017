"""A server as a process: what signals do to it, and what its command refuses."""

import http.client
import importlib.util
import json
import os
import signal
import socket
import time

import psutil
import pytest
from hostile import ROOT, only_error, served
from server_examples import http_post, metrics_page, open_stream, rest_of, status_and_error

pytestmark = pytest.mark.timeout(120)
ANYWHERE = "0.0.0.0"  # noqa: S104 - named, and for a moment listened on, to see the warning


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


def test_the_command_serves_the_model_and_ends_with_0():
    with served("--host", ANYWHERE, "--served-model-name", "mine") as (one, line):
        port = int(line.rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = {"model": "mine", "prompt": "The capital of France is", "max_tokens": 3}
        connection.request("POST", "/v1/completions", json.dumps(body | {"temperature": 0}))
        answer = connection.getresponse().read()
        connection.close()
        one.send_signal(signal.SIGTERM)
        out, err = one.communicate(timeout=30)
    assert line == f"serving mine at http://0.0.0.0:{port}\n"
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
