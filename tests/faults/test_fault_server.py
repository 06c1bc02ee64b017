"""What a server meets: clients that write nonsense, hang up, read slowly, or are too many.

Signals, mixed load for a time, and the command line: test_fault_serve.py.
"""

import concurrent.futures
import json
import random
import socket
import threading
import time
from contextlib import suppress

import psutil
import pytest
from server_examples import (
    ScriptedEngine,
    TestServer,
    http_post,
    open_stream,
    rest_of,
    status_and_error,
    tiny_engine,
    wait_until,
)

from inferlab.models.load import load_tokenizer
from inferlab.server.text import NumberCodec, TokenizerCodec

pytestmark = pytest.mark.timeout(120)
LONG = 200_000  # tokens of an answer that no socket buffer holds


@pytest.fixture(scope="module")
def server():
    with TestServer() as running:
        yield running


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
    garbage = (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", bytes(range(256)) * 8, b"A" * 200_000,
               post + b"content-length: -5\r\n\r\n",
               post + b"transfer-encoding: chunked\r\n\r\nzz\r\n")  # fmt: skip
    for data in garbage:
        # what the server did not read is thrown away, and the connection with it
        with server.connect() as raw, suppress(ConnectionError):
            raw.sendall(data)
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


@pytest.mark.parametrize("stream", [True, False])
def test_the_connection_of_a_reader_that_is_given_up_is_dropped(caplog, stream):
    """Also where the answer is complete, and waits in the server's buffer to be taken."""
    with TestServer(max_len=LONG, stalled_reader_s=0.5) as server:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        raw = server.connect(receive_buffer=4096)
        server.send(raw, max_tokens=20_000, stream=stream)
        wait_until(lambda: server.num_connections() == 1)
        wait_until(lambda: server.num_connections() == 0, 30)
        server.wait_idle()
        raw.close()
    assert caplog.records == []  # uvicorn has nothing to say about it


def test_hang_ups_leak_no_block_with_the_prefix_cache():
    """What is parked for others can be had back."""
    engine = tiny_engine(prefix_cache=True, chunk_size=8)
    manager, prefixes = engine.cache.manager, engine.scheduler.prefixes
    with TestServer(engine, codec=NumberCodec(), max_open=200) as server:

        def hang_up(number):
            prompt = [7] * (1 + number % 30) + [1 + number % 11] * (number % 9)
            with server.connect() as raw:
                server.send(raw, stream=number % 2 > 0, prompt=prompt, max_tokens=80)
                if number % 2:
                    raw.recv(300)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(hang_up, range(100)))
        server.wait_idle(30)
        assert prefixes.num_parked and manager.problems() == []
        prefixes.give_up(manager.num_blocks)
        assert manager.num_free == manager.num_blocks and manager.seq_ids == ()


# Too many, and the end


def test_a_full_queue_is_429_with_retry_after():
    engine = ScriptedEngine(step_s=0.1, num_slots=1)
    with TestServer(engine, max_open=3) as server:
        raws = [open_stream(server.port, max_tokens=120), server.connect(), server.connect()]
        for raw in raws[1:]:
            server.send(raw, max_tokens=3)
        wait_until(lambda: server.worker.num_open == 3)
        response = server.post()
        assert response.status_code == 429 and response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert server.get("/health").status_code == 200
        engine.step_s = 0.0
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
