"""What a server meets: clients that write nonsense, hang up, read slowly, or are too many.

INFERLAB_SOAK_S=600 makes the run under mixed load as long as it should be before a release.
"""

import concurrent.futures
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest
from hostile import ROOT, only_error

from server_examples import (  # isort: skip  (hostile puts its folder on the path)
    ScriptedEngine,
    TestServer,
    http_post,
    tiny_engine,
    wait_until,
)
from inferlab.models.load import load_tokenizer
from inferlab.server.run import is_loopback
from inferlab.server.text import NumberCodec, TokenizerCodec

pytestmark = pytest.mark.timeout(120)
SOAK_S = float(os.environ.get("INFERLAB_SOAK_S", "20"))
ANYWHERE = "0.0.0.0"  # noqa: S104 - named, and for a moment listened on, to see the warning
LONG = 200_000  # tokens of an answer that no socket buffer holds


@pytest.fixture(scope="module")
def server():
    with TestServer() as running:
        yield running


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


def status_and_error(raw):
    """Status and error of a refusal that came on a raw connection."""
    response = http.client.HTTPResponse(raw)
    response.begin()
    body = response.read()
    assert response.getheader("content-type") == "application/json", body
    return response.status, json.loads(body)["error"], response.headers


def open_stream(port, **fields):
    """A raw connection on which a stream has begun."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    body = {"model": "tiny", "prompt": [1], "max_tokens": 50, "stream": True, **fields}
    raw.sendall(http_post("/v1/completions", json.dumps(body).encode()))
    assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
    return raw


def rest_of(raw):
    data = b""
    while part := raw.recv(65536):
        data += part
        if b"[DONE]" in data:
            break
    return data


# Requests that are none


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"\xff\xfe\x00", b'{"model": "tiny", "prompt": "\xc3\x28"}',
     b'{"model": "tiny", "prompt": "\\ud800"}', b"[" * 500_000, b'{"a":' * 100_000, b"\x00" * 1000],
    ids=str,
)  # fmt: skip
def test_a_body_that_is_no_request_gets_400_in_one_line(server, path, body):
    with server.connect() as raw:
        raw.sendall(http_post(path, body))
        status, error, _ = status_and_error(raw)
    assert status == 400 and error["type"] == "invalid_request_error"
    assert "\n" not in error["message"] and len(error["message"]) < 200


def test_bytes_that_are_no_http_end_only_their_connection(server):
    post = b"POST /v1/completions HTTP/1.1\r\n"
    garbage = (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", os.urandom(2000), b"A" * 200_000,
               post + b"content-length: -5\r\n\r\n",
               post + b"transfer-encoding: chunked\r\n\r\nzz\r\n")  # fmt: skip
    for data in garbage:
        # what the server did not read is thrown away, and the connection with it
        with server.connect() as raw, suppress(ConnectionResetError):
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65536):
                pass
    assert server.post().status_code == 200


def test_a_request_that_never_ends_reaches_no_engine(server):
    seen = len(server.engine.seen)
    with server.connect() as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
    assert server.post().status_code == 200
    assert len(server.engine.seen) == seen + 1


def test_a_huge_body_is_413_and_not_kept(server):
    before = psutil.Process().memory_info().rss
    response = server.post(prompt="1 " * 12_000_000)  # 24 MB
    assert response.status_code == 413
    assert response.json()["error"]["message"] == "the request is larger than 4 MiB"
    assert psutil.Process().memory_info().rss - before < 200e6


@pytest.mark.parametrize("tokens", [10**9, 10**400, -1, 0, 2**63])
def test_absurd_max_tokens(server, tokens):
    response = server.post(max_tokens=tokens)
    assert response.status_code == 400
    assert "max_tokens" in response.json()["error"]["message"]


def test_one_megabyte_of_text_is_refused_with_its_number_of_tokens():
    codec = TokenizerCodec(load_tokenizer("smollm2-135m"))
    with TestServer(codec=codec, vocab=49152, max_len=8192) as server:
        for text in ("word " * 200_000, "a" * 1_000_000):
            response = server.post(prompt=text)
            assert response.status_code == 400
            error = response.json()["error"]
            assert (
                error["code"] == "context_length_exceeded"
                and "this server takes 8192" in (error["message"])
            )
        messages = [{"role": "user", "content": "word " * 200_000}]
        assert server.post("/v1/chat/completions", messages=messages).status_code == 400


def test_a_long_text_does_not_hold_up_other_answers():
    class SlowCodec(NumberCodec):
        finished = threading.Event()

        def encode(self, text):
            assert len(text) < 5000 or self.finished.wait(10), "the others never finished"
            return super().encode(text)

    with TestServer(codec=SlowCodec()) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(server.post, prompt="1 " * 5000)
        assert server.post(prompt="1 2").status_code == 200
        SlowCodec.finished.set()
        assert slow.result().status_code == 400


# Clients that leave


def test_a_thousand_clients_that_hang_up_leak_no_block():
    engine = tiny_engine()
    manager, dice = engine.cache.manager, random.Random(5)  # noqa: S311
    with TestServer(engine, codec=NumberCodec(), max_open=200) as server:

        def hang_up(number):
            with server.connect() as raw:
                server.send(raw, stream=number % 3 > 0, prompt=[1 + number % 7] * (1 + number % 20))
                if number % 3 == 1:
                    raw.recv(300)  # in the middle of the answer
                elif number % 3 == 2:
                    time.sleep(dice.random() * 0.01)  # while it waits, or is read

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(hang_up, range(1000)))
        server.wait_idle(30)
        assert manager.num_free == manager.num_blocks and manager.problems() == []
        wait_until(lambda: engine.cache.manager.seq_ids == ())
        page = server.get("/metrics").text
        assert server.post(max_tokens=5).status_code == 200
    gone = next(line for line in page.splitlines() if "disconnected_total{" in line)
    assert float(gone.rpartition(" ")[2]) > 500


def test_a_client_that_hangs_up_is_noticed_within_a_step():
    engine = ScriptedEngine(step_s=0.02)
    with TestServer(engine, max_len=LONG) as server:
        raw = server.connect()
        server.send(raw, max_tokens=100_000)
        raw.recv(1000)
        raw.close()
        steps = engine.now.num_steps
        server.wait_idle()
        assert engine.now.num_steps - steps < 25  # half a second, on a machine with other work
        assert len(engine.cancelled) == 1


def test_a_slow_reader_holds_nobody_up_and_loses_nothing():
    engine = ScriptedEngine()
    with TestServer(engine, max_len=LONG) as server:
        before = psutil.Process().memory_info().rss
        slow = server.connect(receive_buffer=32768)
        server.send(slow, max_tokens=40_000)
        wait_until(lambda: engine.now.output_tokens >= 40_000)  # nobody waited for its reader
        assert server.post(max_tokens=20).status_code == 200
        assert psutil.Process().memory_info().rss - before < 60e6
        data = rest_of(slow)
        slow.close()
    assert data.count(b'"finish_reason":null') == 39_999
    assert data.count(b'"finish_reason":"length"') == 1


def test_a_reader_that_takes_nothing_is_given_up():
    engine = ScriptedEngine(step_s=0.0001)
    with TestServer(engine, max_len=10**7, stalled_reader_s=0.3) as server:
        raw = server.connect(receive_buffer=4096)
        server.send(raw, max_tokens=9_000_000)
        wait_until(lambda: engine.cancelled, 60)
        server.wait_idle()
        assert server.post(max_tokens=20).status_code == 200
        raw.close()


# Too many, and the end


def test_a_full_queue_is_429_with_retry_after():
    engine = ScriptedEngine(step_s=0.01, num_slots=1)
    with TestServer(engine, max_open=3) as server:
        raws = [open_stream(server.port, max_tokens=60) for _ in range(1)]
        raws += [server.connect() for _ in range(2)]
        for raw in raws[1:]:
            server.send(raw, max_tokens=3)
        wait_until(lambda: server.worker.num_open == 3)
        response = server.post()
        assert response.status_code == 429 and response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert server.get("/health").status_code == 200
        for raw in raws:
            assert b"[DONE]" in rest_of(raw)
            raw.close()
        server.wait_idle()
        assert server.post().status_code == 200


def test_an_engine_that_fails_answers_everybody_and_ends_the_server():
    with TestServer(ScriptedEngine(step_s=0.01, fail_at=10)) as server:
        streamed, whole = server.connect(), server.connect()
        server.send(streamed)
        server.send(whole, stream=False)
        status, error, _ = status_and_error(whole)
        text = rest_of(streamed).decode()
    assert status == 500 and "secret" not in error["message"] + text
    last = [line for line in text.split("\n") if line.startswith("data: ")][-2]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert "the engine failed: RuntimeError" in str(server.error) and server.error.exit_code == 1


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


def test_a_taken_port_is_said_before_the_model_is_loaded(call):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, _, err = call("serve", "--port", other.getsockname()[1])
    assert code == 2 and "is another server there?" in only_error(err)


def test_what_is_the_loopback():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in (ANYWHERE, "::", "192.168.0.1", "example"))


def test_the_command_serves_the_model_and_ends_with_0():
    command = [sys.executable, "-m", "inferlab", "serve", "--port", "0", "--threads", "1",
               "--cache-tokens", "1024", "--host", ANYWHERE]  # fmt: skip
    one = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        line = one.stdout.readline()
        port = int(line.rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = {"model": "smollm2-135m", "prompt": "The capital of France is", "max_tokens": 3}
        connection.request("POST", "/v1/completions", json.dumps(body | {"temperature": 0}))
        answer = connection.getresponse().read()
        connection.close()
        one.send_signal(signal.SIGTERM)
        out, err = one.communicate(timeout=30)
    finally:
        one.kill()
    assert line == f"serving smollm2-135m at http://0.0.0.0:{port}\n"
    assert json.loads(answer)["choices"][0]["text"].startswith(" Paris"), answer
    assert one.returncode == 0 and out == ""
    assert err.startswith("0.0.0.0 is not the loopback") and err.count("\n") == 1
    host = socket.gethostname()
    assert host not in answer.decode() and str(ROOT) not in answer.decode()
