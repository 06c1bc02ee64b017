"""Servers that fail: every request is accounted for, nothing hangs, what came is kept."""

import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # client_examples
from client_examples import requests, scripted

from inferlab.client.drive import drive
from inferlab.client.mock import MockServer
from inferlab.client.target import Target
from inferlab.errors import MeasurementError
from inferlab.metrics import summarize
from inferlab.trace import load_trace, save_trace

# fault -> status, words of the error, tokens that had come by then (of 8, half way at 4)
FAILURES = {
    "refuse": ("error", "closed the connection without an answer: Connection reset", 0),
    "silent": ("timeout", "no end within 0.6 s; 0 chunks had come", 0),
    "stall": ("timeout", "no end within 0.6 s; 4 chunks had come", 4),
    "die-mid-stream": ("error", "the connection was lost mid-stream: Connection reset", 4),
    "close-mid-stream": ("error", "the connection was lost mid-stream", 4),
    "half-chunk": ("error", "the connection was lost within a chunk", 4),
    "error-object": ("error", "the server's error: out of blocks", 4),
    "not-json": ("error", "a chunk that is not JSON: {'choices': oops", 4),
    "no-stream": ("error", "no stream but one answer", 0),
    "http-429": ("error", "HTTP 429: the queue is full", 0),
    "http-500": ("error", "HTTP 500: the engine is dead", 0),
    "not-http": ("error", "no HTTP answer", 0),
}


@pytest.fixture(scope="module")
def mock():
    with MockServer(ttft_s=0.01, itl_s=0.003) as server:
        yield server


@pytest.mark.parametrize("concurrency", [None, 2])
@pytest.mark.parametrize("fault", FAILURES)
def test_every_failed_request_is_in_the_trace(mock, tmp_path, fault, concurrency):
    target = Target(mock.url, fault, timeout_s=0.6)
    workload = requests(4)
    start = time.perf_counter()
    run = drive(target, workload, concurrency=concurrency)
    assert time.perf_counter() - start < 10
    status, words, tokens = FAILURES[fault]
    assert len(run.trace.requests) == 4 and run.trace.meta["unsent"] == 0
    for request in run.trace.requests:
        assert (request.status, request.output_tokens) == (status, tokens)
        assert words in request.error and "127.0.0.1" not in request.error
    summary = summarize(load_trace(save_trace(run.trace, tmp_path / "t.jsonl.gz")))
    assert (summary.counts["failed"], summary.counts["ok"]) == (4, 0)
    assert summary.counts["output_tokens_of_failed"] == 4 * tokens


@pytest.mark.parametrize(
    ("fault", "source", "tokens"),
    [
        ("no-usage", "no_usage", 8),
        ("wrong-usage", "usage_refused", 8),
        ("no-done", "chunks", 8),
        ("empty-first-chunk", "chunks", 8),
        ("several-tokens-a-chunk", "usage", 8),
        ("split-writes", "chunks", 8),
    ],
)
def test_odd_answers_are_counted_right_and_marked(mock, fault, source, tokens):
    run = drive(Target(mock.url, fault, extensions=False), requests(3))
    assert {(r.status, r.output_tokens) for r in run.trace.requests} == {("ok", tokens)}
    assert run.trace.meta["tokens_from"] == {source: 3}
    assert run.trace.meta["usage_disagrees"] == (3 if fault == "wrong-usage" else 0)
    with_ids = drive(Target(mock.url, fault), requests(3)).trace
    assert with_ids.meta["tokens_from"] == {"token_ids": 3}
    assert with_ids.meta["usage_disagrees"] == (3 if fault == "wrong-usage" else 0)
    if fault == "empty-first-chunk":
        assert with_ids.requests[0].events[0][1] == 0


def test_one_bad_request_of_three_costs_no_other(mock):
    with MockServer(ttft_s=0.005, itl_s=0.002, fault="die-mid-stream", fault_every=3) as server:
        run = drive(Target(server.url, "m"), requests(9), concurrency=2)
    statuses = [r.status for r in run.trace.requests]
    assert statuses.count("ok") == 6 and statuses.count("error") == 3


def test_nobody_listens():
    run = drive(Target("http://127.0.0.1:9", "m"), requests(3))
    assert {r.status for r in run.trace.requests} == {"error"}
    assert run.trace.requests[0].error == "cannot connect: Connection refused"
    run = drive(Target("http://127.0.0.1:9", "m"), requests(500), concurrency=4)
    assert len(run.trace.requests) == 500  # refused at once, and still counted


def test_a_name_that_does_not_exist():
    with pytest.raises(MeasurementError, match="cannot reach no-such-host.invalid"):
        drive(Target("http://no-such-host.invalid", "m"), requests(1))


def test_a_server_that_speaks_no_tls():
    def play(connection, number):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 400 no\r\n\r\n")

    with scripted(play) as url:
        run = drive(Target(url.replace("http", "https"), "m", timeout_s=3), requests(2))
    assert {r.status for r in run.trace.requests} == {"error"}
    assert "cannot connect" in run.trace.requests[0].error


def test_a_server_that_is_killed_in_the_middle(tmp_path):
    with MockServer(ttft_s=0.01, itl_s=0.01) as server:
        killer = threading.Timer(1.5, os.kill, (server.pid, signal.SIGKILL))
        killer.start()
        run = drive(Target(server.url, "m", timeout_s=5), requests(80, 20, 25.0))
        killer.join()
    statuses = {r.status for r in run.trace.requests}
    assert len(run.trace.requests) == 80 and statuses == {"ok", "error"}
    assert sum(r.output_tokens for r in run.trace.requests if r.status == "error") > 0
    assert load_trace(save_trace(run.trace, tmp_path / "t.jsonl")) == run.trace


def test_garbage_without_end_is_cut_short():
    def play(connection, number):
        connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        block = b"10000\r\n" + b"data: " + b"x" * (65536 - 6) + b"\r\n"
        while True:
            connection.sendall(block)

    with scripted(play) as url:
        run = drive(Target(url, "m", timeout_s=20), requests(1))
    assert "an event of more than 4 MiB" in run.trace.requests[0].error


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_a_server_behind_tls_and_one_with_a_strangers_certificate(tmp_path, monkeypatch):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    token = b'data: {"choices": [{"text": " a", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"

    def play(connection, number):
        with context.wrap_socket(connection, server_side=True) as safe:
            safe.recv(65536)
            safe.sendall(head + b"Content-Length: %d\r\n\r\n" % len(token) + token)

    with scripted(play) as url:
        target = Target(url.replace("http", "https"), "m", timeout_s=10)
        run = drive(target, requests(2, 1))
        assert {r.status for r in run.trace.requests} == {"error"}
        assert "cannot connect: TLS: self-signed certificate" in run.trace.requests[0].error
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        run = drive(target, requests(2, 1))
    assert [(r.status, r.output_tokens) for r in run.trace.requests] == [("ok", 1)] * 2
    assert run.trace.meta["arrival_times"] == "read"


EVENT = b'data: {"choices": [{"text": " a", "finish_reason": %s}]}\n\n'
STREAM = b"HTTP/1.%d 200 OK\r\nContent-Type: text/event-stream\r\n%s\r\n"
BROKEN = b"HTTP/1.%d 500 no\r\nContent-Type: application/json\r\n%s\r\n"
DEAD = b'{"error": {"message": "the engine is dead"}}'


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (BROKEN % (0, b"") + DEAD, "error", "HTTP 500: the engine is dead"),
        (BROKEN % (1, b"Connection: close\r\n") + DEAD, "error", "HTTP 500: the engine is dead"),
        (BROKEN % (0, b""), "error", "HTTP 500: "),
        (BROKEN % (1, b"Content-Length: 99\r\n") + b"cut sho", "error", "HTTP 500: cut sho"),
        (STREAM % (0, b"") + EVENT % b'"length"', "ok", ""),
        (STREAM % (1, b"") + EVENT % b"null" + b"data: [DONE]\n\n", "ok", ""),
        (STREAM % (0, b"") + EVENT % b"null", "error", "without a finish_reason and without"),
        (STREAM % (0, b"") + EVENT[:30], "error", "the stream ended within a chunk"),
        (STREAM % (1, b"Content-Length: 999\r\n") + EVENT % b'"stop"', "error", "lost mid-stream"),
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\nhi", "error", "no stream but one"),
    ],
)  # fmt: skip
def test_an_answer_that_ends_with_its_connection(answer, status, words):
    def play(connection, number):
        connection.recv(65536)
        connection.sendall(answer)

    with scripted(play) as url:
        run = drive(Target(url, "m", timeout_s=5), requests(1, 1))
    request = run.trace.requests[0]
    assert request.status == status and words in (request.error or ""), request.error


def test_an_answer_that_switches_protocols_costs_no_other_request():
    def play(connection, number):
        connection.recv(65536)
        if number == 1:
            connection.sendall(
                b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
            )
            connection.recv(65536)
        else:
            connection.sendall(STREAM % (0, b"") + EVENT % b'"length"')

    with scripted(play) as url:
        run = drive(Target(url, "m", timeout_s=3), requests(6, 1, 20.0))
    bad = [r for r in run.trace.requests if r.status != "ok"]
    assert len(run.trace.requests) == 6 and [r.status for r in bad] == ["error"]
    assert "HTTP 101" in bad[0].error
