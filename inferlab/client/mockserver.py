"""A server with known delays and known faults that logs when it wrote each chunk.

It computes nothing: a request gets its first token `ttft_s` after it arrived and one more every
`itl_s`. With `aligned` all streams write at the same moments, as a server does that takes one step
for all of them. It is run by `inferlab.client.mock` in a process of its own.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import sys
import time
from dataclasses import asdict, dataclass

import httptools

from inferlab.client.sockets import PreciseLoop, StampedSocket, WallClock

# What can go wrong, by the name that a request gives as its model (or the server has as `fault`).
FAULTS = (
    "refuse", "silent", "stall", "die-mid-stream", "close-mid-stream", "half-chunk",
    "error-object", "not-json", "no-usage", "wrong-usage", "no-done", "empty-first-chunk",
    "several-tokens-a-chunk", "split-writes", "no-stream", "http-429", "http-500", "not-http",
)  # fmt: skip
TOKENS_A_CHUNK = 3  # of "several-tokens-a-chunk"


@dataclass(frozen=True, slots=True)
class Settings:
    """Delays in seconds; every `fault_every`-th request has the `fault`."""

    ttft_s: float = 0.02
    itl_s: float = 0.01
    aligned: bool = False
    fault: str = ""
    fault_every: int = 1


class Server:
    """All connections, and the log: request id -> when it arrived and when chunks were written."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings, self.loop = settings, loop
        self.clock = WallClock()
        self.log: dict[str, dict] = {}
        self.generated = 0

    def accept(self, listener: socket.socket) -> None:
        """Take every connection that waits."""
        while True:
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            Peer(self, sock)

    def fault_of(self, model: str) -> str:
        """The fault of the next request, or ""."""
        if model in FAULTS:
            return model
        self.generated += 1
        has_fault = self.settings.fault and self.generated % self.settings.fault_every == 0
        return self.settings.fault if has_fault else ""


class Peer:
    """One connection: requests in, streams out, one at a time."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._socket = StampedSocket(server.loop, sock, server.clock, self._receive)
        self._begin()

    def _begin(self) -> None:
        self._http = httptools.HttpRequestParser(self)
        self._url = b""
        self._request_id = ""
        self._body = bytearray()

    def _receive(self, arrived: float, data: bytes | OSError) -> None:
        if not data or isinstance(data, OSError):
            return
        self._arrived = arrived
        try:
            self._http.feed_data(data)
        except httptools.HttpParserError:
            self._socket.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._request_id = value.decode("ascii", "replace")

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        path, arrived = self._url.partition(b"?")[0], self._arrived
        request_id, body = self._request_id, bytes(self._body)
        self._begin()
        if path == b"/log":
            log, self._server.log = self._server.log, {}
            self._answer(200, log)
        elif path.endswith(b"/completions"):
            self._generate(request_id, arrived, body)
        else:
            self._answer(200, {"status": "ok"})

    def _answer(self, status: int, value: dict, header: str = "") -> None:
        content = json.dumps(value).encode()
        self._socket.write(
            f"HTTP/1.1 {status} Mock\r\nContent-Type: application/json\r\n{header}"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )

    def _generate(self, request_id: str, arrived: float, body: bytes) -> None:
        try:
            asked = json.loads(body)
            tokens, fault = int(asked["max_tokens"]), self._server.fault_of(asked["model"])
        except (ValueError, KeyError, TypeError):
            self._answer(400, {"error": {"message": "this is no request"}})
            return
        if fault == "refuse":
            self._socket.close(reset=True)
        elif fault == "http-500":
            self._answer(500, {"error": {"message": "the engine is dead", "type": "internal"}})
        elif fault == "http-429":
            self._answer(429, {"error": {"message": "the queue is full"}}, "Retry-After: 1\r\n")
        elif fault == "not-http":
            self._socket.write(b"220 mail.example ESMTP ready\r\n")
        elif fault == "no-stream":
            self._answer(200, {"choices": [{"text": "all at once"}]})
        elif fault != "silent":
            entry = {"received": arrived, "writes": []}
            log = self._server.log  # not every client gives its requests a name
            log[request_id or f"unnamed-{len(log)}"] = entry
            Stream(self._server, self._socket, asked, tokens, fault, entry).start()


class Stream:
    """One answer, a chunk at a time."""

    def __init__(
        self,
        server: Server,
        connection: StampedSocket,
        asked: dict,
        tokens: int,
        fault: str,
        entry: dict,
    ) -> None:
        self._server, self._socket, self._asked = server, connection, asked
        self._tokens, self._fault, self._entry = tokens, fault, entry
        self._sent = 0
        self._step = TOKENS_A_CHUNK if fault == "several-tokens-a-chunk" else 1
        self._half = max(1, tokens // 2)
        self._is_chat = "messages" in asked

    def start(self) -> None:
        """Send the head now and the first token when it is due."""
        self._socket.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        if self._fault == "empty-first-chunk":
            self._write(self._chunk("", []))
        settings = self._server.settings
        self._due = self._entry["received"] + settings.ttft_s
        if settings.aligned:
            self._due = math.ceil(self._due / settings.itl_s) * settings.itl_s
        self._server.loop.call_at(self._due, self._next)

    def _next(self) -> None:
        if not self._socket.is_open:
            return
        if self._sent >= self._half and self._breaks():
            return
        count = min(self._step, self._tokens - self._sent)
        ids = list(range(self._sent, self._sent + count))
        self._sent += count
        self._write(self._chunk(" tok" * count, ids))
        if self._sent < self._tokens:
            self._due += self._server.settings.itl_s
            self._server.loop.call_at(self._due, self._next)
        else:
            self._finish()

    def _breaks(self) -> bool:
        """Whether the fault strikes now, half way."""
        if self._fault == "stall":
            return True
        if self._fault == "die-mid-stream":
            self._socket.close(reset=True)
        elif self._fault == "close-mid-stream":
            self._socket.close()
        elif self._fault == "half-chunk":
            self._event(self._chunk(" tok", [self._sent])[:40], end=b"")
            self._socket.close()
        elif self._fault == "error-object":
            self._event(b'{"error": {"message": "out of blocks", "type": "internal", "code": 500}}')
            self._end()
        elif self._fault == "not-json":
            self._event(b"{'choices': oops")
            self._end()
        else:
            return False
        return True

    def _finish(self) -> None:
        choice = {"index": 0, "finish_reason": "length"}
        choice |= {"delta": {}} if self._is_chat else {"text": ""}
        tail = [{"choices": [choice]}]
        if self._fault != "no-usage" and self._asked.get("stream_options"):
            tokens = self._tokens * (10 if self._fault == "wrong-usage" else 1)
            prompt = self._asked.get("prompt", "")
            usage = {"prompt_tokens": len(prompt) or 1, "completion_tokens": tokens}
            tail.append({"choices": [], "usage": usage})
        for value in tail:
            self._event(json.dumps(value).encode())
        if self._fault != "no-done":
            self._event(b"[DONE]")
        self._end()

    def _chunk(self, text: str, ids: list[int]) -> bytes:
        choice: dict = {"index": 0, "finish_reason": None}
        choice |= {"delta": {"content": text}} if self._is_chat else {"text": text}
        if self._asked.get("return_token_ids"):
            choice["token_ids"] = ids
        # other load generators (AIPerf) look at the name of the object
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return json.dumps({"id": "mock", "object": kind, "choices": [choice]}).encode()

    def _write(self, data: bytes) -> None:
        """A chunk of the answer, its moment logged: the clock is read before the bytes leave."""
        self._entry["writes"].append(time.perf_counter())
        self._event(data)

    def _event(self, data: bytes, end: bytes = b"\n\n") -> None:
        event = b"data: " + data + end
        framed = b"%x\r\n%b\r\n" % (len(event), event)
        if self._fault == "split-writes":
            self._socket.write(framed[:25])
            time.sleep(0.002)
            framed = framed[25:]
        self._socket.write(framed)

    def _end(self) -> None:
        self._socket.write(b"0\r\n\r\n")


async def serve(settings: Settings) -> None:
    """Print the port, then serve until standard input ends: the parent's death is enough."""
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    server = Server(settings, loop)
    loop.add_reader(listener, server.accept, listener)
    over = asyncio.Event()
    loop.add_reader(sys.stdin, over.set)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    await over.wait()


def main() -> None:
    """`python -m inferlab.client.mockserver '{"ttft_s": 0.02, ...}'`."""
    import gc

    settings = Settings(**{**asdict(Settings()), **json.loads(sys.argv[1])})
    gc.freeze()
    gc.disable()
    with asyncio.Runner(loop_factory=PreciseLoop) as runner:
        runner.run(serve(settings))


if __name__ == "__main__":
    main()
