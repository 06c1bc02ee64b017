"""A server in a thread of the test, over a scripted engine or a tiny real one; and as a process.

`python server_examples.py scripted|tiny` serves until a signal comes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import Pipe

import httpx
import psutil

from inferlab.errors import UserError
from inferlab.server.app import ServedModel, create_app
from inferlab.server.connection import drop_stalled
from inferlab.server.engineside import run_engine
from inferlab.server.run import listening_socket, run_server
from inferlab.server.text import NumberCodec
from inferlab.server.worker import EngineWorker

# No TLS here: loading certificates for each request would take longer than the request.
CLIENT = httpx.Client(verify=False, trust_env=False, timeout=20)  # noqa: S501
VOCAB = 61
MAX_LEN = 128


@dataclass(frozen=True)
class Output:
    seq_id: str
    token_id: int
    finish_reason: str | None


@dataclass
class Stats:
    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 8
    num_blocks: int = 8
    num_preempted: int = 0
    num_steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class ScriptedEngine:
    """Counts upwards from the last prompt token; a step takes `step_s`; token 9 is the stop."""

    def __init__(self, step_s: float = 0.0, num_slots: int = 8, fail_at: int | None = None):
        self.step_s, self.num_slots, self.fail_at = step_s, num_slots, fail_at
        self.running: dict[str, list] = {}
        self.now = Stats(num_blocks=num_slots)
        self.cancelled: list[str] = []
        self.seen: list[tuple] = []

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def add_request(self, seq_id, prompt_token_ids, max_tokens, sampling=None, stop_token_ids=()):
        if prompt_token_ids[0] == 13:
            raise UserError("this prompt can never fit")
        self.running[seq_id] = [prompt_token_ids[-1], max_tokens, frozenset(stop_token_ids)]
        self.seen.append((seq_id, list(prompt_token_ids), max_tokens, sampling))
        self.now.prompt_tokens += len(prompt_token_ids)

    def cancel(self, seq_id):
        self.cancelled.append(seq_id)
        return self.running.pop(seq_id, None) is not None

    def step(self):
        time.sleep(self.step_s)
        self.now.num_steps += 1
        if self.fail_at is not None and self.now.num_steps >= self.fail_at:
            raise RuntimeError("/secret/place: the device is gone")
        outputs = []
        for seq_id in list(self.running)[: self.num_slots]:
            state = self.running[seq_id]
            state[0], state[1] = (state[0] + 1) % VOCAB, state[1] - 1
            reason = "stop" if state[0] in state[2] else "length" if state[1] == 0 else None
            if reason:
                del self.running[seq_id]
            outputs.append(Output(seq_id, state[0], reason))
            self.now.output_tokens += 1
        return outputs

    def stats(self):
        running = min(len(self.running), self.num_slots)
        return dataclasses.replace(
            self.now,
            num_running=running,
            num_waiting=len(self.running) - running,
            num_free_blocks=self.num_slots - running,
        )


def line_to(engine):
    """The server's end of a line to `engine`, which steps in a thread of the test."""
    line, other = Pipe()
    threading.Thread(target=run_engine, args=(engine, other), daemon=True).start()
    return line


def worker_for(engine, **options):
    return EngineWorker(line_to(engine), engine.stats(), **options)


class StoppingCodec(NumberCodec):
    stop_token_ids = (9,)


class TestServer:
    """A server in a thread; `with TestServer(engine) as server: server.post(...)`."""

    __test__ = False

    def __init__(self, engine=None, *, max_open=64, codec=None, stalled_reader_s=60.0,
                 vocab=VOCAB, max_len=MAX_LEN):  # fmt: skip
        self.engine = engine or ScriptedEngine()
        self.worker = worker_for(self.engine, max_open=max_open, num_slots=8)
        model = ServedModel("tiny", vocab, max_len, codec or StoppingCodec())
        self.app = create_app(model, self.worker, stalled_reader_s)
        self.listener = listening_socket("127.0.0.1", 0)
        drop_stalled(self.listener, stalled_reader_s)
        self.error = None
        self._ready = threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10), self.error
        return self

    def __exit__(self, *_):
        self.worker.draining = True
        self._thread.join(20)
        self.listener.close()
        assert not self._thread.is_alive()

    def _run(self):
        def ready(line):
            self.line, self.url = line, line.split(" at ")[1]
            self.port = int(line.rpartition(":")[2])
            self._ready.set()

        try:
            asyncio.run(run_server(self.app, self.worker, self.listener, "tiny", ready))
        except Exception as error:
            self.error = error

    def post(self, path="/v1/completions", **fields):
        body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4, **fields}
        if "chat" in path and "messages" not in fields:
            body["messages"] = [{"role": "user", "content": "1 2 3"}]
        return CLIENT.post(self.url + path, json=body)

    def get(self, path):
        return CLIENT.get(self.url + path)

    def connect(self, *, receive_buffer=None):
        """A raw connection."""
        raw = socket.socket()
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(20)
        raw.connect(("127.0.0.1", self.port))
        return raw

    def num_connections(self):
        """Connections whose file descriptors the server still holds."""
        mine = psutil.Process().net_connections("tcp")
        return sum(one.laddr.port == self.port and one.status != "LISTEN" for one in mine)

    def send(self, raw, **fields):
        """A streamed completion on a raw connection."""
        body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 100, "stream": True,
                "ignore_eos": True, **fields}  # fmt: skip
        raw.sendall(http_post("/v1/completions", json.dumps(body).encode()))

    def wait_idle(self, timeout_s=20.0):
        """Until nothing is open and the engine has let everything go."""
        wait_until(lambda: not self.worker.num_open and not self.engine.has_work, timeout_s)
        wait_until(lambda: self.worker.stats.num_running == 0, timeout_s)


def http_post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: tiny\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


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


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def events(response) -> list:
    """The documents of a stream; asserts its end mark."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def tiny_engine(**options):
    """The real engine over a tiny random decoder."""
    from tiny_models import TINY

    from inferlab.models.load import load_decoder
    from inferlab.serving.engine import Engine

    decoder = load_decoder(TINY["llama"], "float32", "cpu", "random")
    return Engine(decoder, **{"num_blocks": 64, "block_size": 4, "max_num_seqs": 4, **options})


def main(kind: str) -> None:
    if kind == "tiny":
        engine = tiny_engine(max_num_seqs=8, num_blocks=128, prefix_cache=True, chunk_size=16)
        worker = worker_for(engine, max_open=12, num_slots=8)
    else:
        engine = ScriptedEngine(step_s=0.02, num_slots=2)
        worker = worker_for(engine, max_open=6, num_slots=2)
    app = create_app(ServedModel("tiny", VOCAB, MAX_LEN, NumberCodec()), worker)
    with listening_socket("127.0.0.1", 0) as listener:
        try:
            asyncio.run(
                run_server(app, worker, listener, "tiny", lambda line: print(line, flush=True))
            )
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)


def metrics_page(port):
    """/metrics, once the engine has heard of the last client that hung up."""
    time.sleep(0.3)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    return page


if __name__ == "__main__":
    main(sys.argv[1])
