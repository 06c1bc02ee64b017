"""The client against a server with known delays: what is sent, when, and what is made of it."""

import threading

import pytest
from client_examples import requests, scripted

from inferlab.backends import load_backend
from inferlab.client.connections import allow_connections
from inferlab.client.drive import drive
from inferlab.client.mock import MockServer
from inferlab.client.target import Target
from inferlab.errors import MeasurementError, UserError
from inferlab.metrics import itl_s, ttft_from_sent_s
from inferlab.workload import uniform_batch

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices": [{"index": 0, "text": " a", "finish_reason": "length"}]}\n\n'


@pytest.fixture(scope="module")
def mock():
    with MockServer(ttft_s=0.02, itl_s=0.005) as server:
        yield server


def framed(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = HEAD + framed(TOKEN) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def test_an_open_loop_sends_when_due_and_sees_the_delays(mock):
    workload = requests(8)
    run = drive(Target(mock.url, "m"), workload)
    assert [r.id for r in run.trace.requests] == [spec.id for spec in workload.requests]
    assert {r.status for r in run.trace.requests} == {"ok"}
    due = [spec.scheduled for spec in workload.requests]
    assert [r.scheduled for r in run.trace.requests] == pytest.approx(due, abs=1e-6)
    for request, ids in zip(run.trace.requests, run.token_ids, strict=True):
        assert request.output_tokens == 8 and ids == list(range(8))
        assert request.prompt_tokens == 5
        assert 0.019 < ttft_from_sent_s(request) < 0.2  # the machine may be busy, never early
        assert sum(itl_s(request)) == pytest.approx(7 * 0.005, rel=0.5)
    assert run.texts[0] == " tok" * 8
    meta = run.trace.meta
    assert (meta["loop"], meta["unsent"], meta["short_answers"]) == ("open", 0, 0)
    assert meta["tokens_from"] == {"token_ids": 8} and meta["client"]["sends"] == 8
    assert "127.0.0.1" not in str(meta)


def test_a_closed_loop_keeps_so_many_in_flight(mock):
    run = drive(Target(mock.url, "m"), requests(10), concurrency=3)
    spans = [(r.sent, r.events[-1][0]) for r in run.trace.requests]
    in_flight = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(in_flight) == 3 and len(spans) == 10
    assert all(r.sent == r.scheduled for r in run.trace.requests)
    assert run.trace.meta["concurrency"] == 3 and run.verdict.late_sends == 0


def test_text_goes_to_the_chat_api(mock):
    target = Target(mock.url, "m", "chat", extensions=False)
    run = drive(target, requests(2), prompts=["one", "two"])
    assert run.texts == [" tok" * 8] * 2 and run.token_ids == [[], []]
    assert run.trace.meta["tokens_from"] == {"chunks": 2}


def test_a_duration_ends_the_sending(mock):
    run = drive(Target(mock.url, "m"), requests(50, rate=50), duration_s=0.3)
    assert 10 < len(run.trace.requests) <= 16
    assert run.trace.meta["unsent"] == 50 - len(run.trace.requests)
    assert {r.status for r in run.trace.requests} == {"ok"}


def test_it_runs_where_a_loop_runs_already(mock):
    import asyncio

    async def cell():
        return drive(Target(mock.url, "m"), requests(2))

    assert asyncio.run(cell()).trace.requests[1].status == "ok"


def test_progress_is_told(mock):
    seen = []
    drive(Target(mock.url, "m"), requests(3, output_len=120), on_progress=seen.append)
    assert seen[-1].sent == seen[-1].planned == 3 and seen[-1].failed == 0


def test_a_connection_is_kept_and_a_closed_one_is_replaced():
    connections, cut = [], threading.Event()

    def play(connection, number):
        connections.append(number)
        connection.recv(65536)
        connection.sendall(WHOLE)
        connection.recv(65536)
        if number == 0:  # the second request on it: closed as if at that moment
            cut.set()
            return
        connection.sendall(WHOLE)
        connection.recv(65536)

    with scripted(play) as url:
        run = drive(Target(url, "m"), requests(3, output_len=1), concurrency=1)
    assert [r.status for r in run.trace.requests] == ["ok"] * 3
    assert connections == [0, 1] and cut.is_set() and run.trace.meta["resent"] == 1


def test_bytes_one_at_a_time_are_the_same_answer():
    def play(connection, number):
        connection.recv(65536)
        for index in range(len(WHOLE)):
            connection.sendall(WHOLE[index : index + 1])

    with scripted(play) as url:
        run = drive(Target(url, "m"), requests(2, output_len=1))
    assert [(r.status, r.output_tokens) for r in run.trace.requests] == [("ok", 1)] * 2


def test_a_large_request_and_a_server_that_reads_slowly():
    body = uniform_batch(50_000, 1, 400_000, 1)
    got = []

    def play(connection, number):
        connection.settimeout(10)
        content = b""
        while not content.endswith(b"}"):
            content += connection.recv(1 << 16)
        got.append(len(content))
        connection.sendall(WHOLE)

    with scripted(play) as url:
        run = drive(Target(url, "m"), body)
    assert run.trace.requests[0].status == "ok" and got[0] > 2_000_000


def test_times_of_reads_where_the_kernel_is_not_asked(mock):
    run = drive(Target(mock.url, "m"), requests(3), kernel_stamps=False)
    assert run.trace.meta["arrival_times"] == "read"
    assert all(ttft_from_sent_s(r) > 0.019 for r in run.trace.requests)


def test_the_http_backend(mock):
    backend = load_backend("http", "smollm2-135m", url=mock.url, concurrency=2)
    run = backend.run(requests(4))
    assert run.token_ids == [list(range(8))] * 4 and run.trace.meta["loop"] == "closed"
    assert (backend.name, backend.config.name) == ("http", "smollm2-135m")
    with pytest.raises(MeasurementError, match="every request failed; the first: HTTP 500"):
        load_backend("http", url=mock.url, served_model="http-500").run(requests(2))
    with pytest.raises(UserError, match="needs url="):
        load_backend("http")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"duration_s": 0}, "duration"),
        ({"prompts": ["one"]}, "need as many prompts"),
    ],
)
def test_impossible_runs_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        drive(Target("http://127.0.0.1:1", "m"), requests(2), **options)


def test_an_address_that_cannot_be_looked_up_is_none():
    for host in ("a..b", "x" * 64, "a.." + "b" * 70):
        with pytest.raises(UserError, match="no address of a server"):
            Target(f"http://{host}", "m")
    assert Target("http://[::1]:8000", "m").host == "::1"


@pytest.fixture
def few_files():
    """The soft limit of open files, lowered for a while."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    yield lambda: resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_streams_than_the_soft_limit_of_files(mock, few_files):
    run = drive(Target(mock.url, "m"), requests(150, 40), concurrency=150)
    assert {r.status for r in run.trace.requests} == {"ok"}
    soft, hard = few_files()
    assert 150 < soft <= hard
    allow_connections(10)
    assert few_files() == (soft, hard)  # never lowered
    allow_connections(10**9)
    assert few_files() == (hard, hard)
