"""How is one answer sent, and what ends it early?

Plain ASGI: a task of the event loop writes what has come since it last looked, and a second one
waits for the client to hang up. Nothing is sent before the first token, so that a refusal has its
HTTP status. A client that reads slowly holds up nobody: its tokens wait as integers, at most as
many as it asked for, and one that takes nothing for `STALLED_READER_S` is given up.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from inferlab.server.connection import abort_of
from inferlab.server.schema import ApiError
from inferlab.server.stream import AnswerText, Chunks, compact, usage_of, whole_answer
from inferlab.server.worker import ClientGone, EngineWorker, Token, TokenStream

STALLED_READER_S = 60.0
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How the client wants its answer."""

    model: str
    created: int
    chat: bool
    streamed: bool
    usage: bool
    token_ids: bool


class Answer:
    """One answer as an ASGI application: submitted to the engine when it is called."""

    def __init__(
        self,
        worker: EngineWorker,
        stream: TokenStream,
        text: AnswerText,
        form: AnswerForm,
        metrics: Any,
        stalled_reader_s: float = STALLED_READER_S,
    ) -> None:
        self._worker, self._stream, self._text = worker, stream, text
        self._form, self._metrics = form, metrics
        self._stalled_reader_s = stalled_reader_s
        self._writing_since_s: float | None = None
        self._reason: str | None = None
        self._num_tokens = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Submit, send, and let go of the request whatever happens."""
        try:
            self._worker.submit(self._stream)
        except ApiError as error:
            self._metrics.refused(error.status)
            await send_error(send, error)
            return
        listener = asyncio.create_task(self._until_gone(receive))
        watch = self._watch(abort_of(scope) or asyncio.current_task().cancel)
        try:
            await (self._send_stream(send) if self._form.streamed else self._send_whole(send))
        except ClientGone:
            self._metrics.disconnected()
        finally:
            watch.cancel()
            listener.cancel()
            self._worker.release(self._stream)

    async def _until_gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stream.leave()

    def _watch(self, give_up: Callable[[], Any]) -> Any:
        """Look now and then whether one write takes too long, rather than time each of them.

        `give_up` drops the connection: the write returns, and the listener hears of it.
        """
        loop = asyncio.get_running_loop()
        timer = _Timer()

        def look() -> None:
            since_s = self._writing_since_s
            if since_s is not None and perf_counter() - since_s > self._stalled_reader_s:
                give_up()
            else:
                timer.handle = loop.call_later(self._stalled_reader_s / 4, look)

        look()
        return timer

    async def _send_stream(self, send: Any) -> None:
        form = self._form
        chunks = Chunks(self._stream.seq_id, form.model, form.created, form.chat, form.token_ids)
        try:
            tokens = await self._stream.take()
        except ApiError as error:
            await self._refuse(send, error)
            return
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        try:
            while True:
                body = "".join([chunks.token(*piece) for piece in self._pieces(tokens)])
                if self._reason is not None:
                    break
                await self._write(send, body)
                tokens = await self._stream.take()
            usage = usage_of(len(self._stream.prompt_token_ids), self._num_tokens)
            body += chunks.last(usage if form.usage else None)
        except ApiError as error:  # the answer began with 200: the error is an event of it
            self._metrics.refused(error.status)
            body = f"data: {compact(error.body())}\n\n{chunks.last(None)}"
        await self._write(send, body, more=False)

    async def _send_whole(self, send: Any) -> None:
        pieces: list[tuple[str, int, str | None]] = []
        try:
            while self._reason is None:
                pieces += self._pieces(await self._stream.take())
        except ApiError as error:
            await self._refuse(send, error)
            return
        text = "".join(piece for piece, _, _ in pieces)
        choice: dict[str, Any] = {"text": text, "finish_reason": self._reason}
        if self._form.token_ids:
            choice["token_ids"] = [token_id for _, token_id, _ in pieces]
        form, usage = self._form, usage_of(len(self._stream.prompt_token_ids), self._num_tokens)
        answer = whole_answer(
            self._stream.seq_id, form.model, form.created, form.chat, choice, usage
        )
        await send_json(send, 200, answer)

    def _pieces(self, tokens: list[Token]) -> list[tuple[str, int, str | None]]:
        """(text, token id, reason to end) of each token, up to the one that ends the answer."""
        pieces = []
        for token_id, reason in tokens:
            text, stopped = self._text.add(token_id, reason is not None)
            self._num_tokens += 1
            if stopped and reason != "stop":
                if reason is None:
                    self._metrics.finished(self._stream, perf_counter(), "stop")
                reason = "stop"
            pieces.append((text, token_id, reason))
            if reason is not None:
                self._reason = reason
                break
        return pieces

    async def _write(self, send: Any, body: str, more: bool = True) -> None:
        self._writing_since_s = perf_counter()
        await send({"type": "http.response.body", "body": body.encode("ascii"), "more_body": more})
        self._writing_since_s = None

    async def _refuse(self, send: Any, error: ApiError) -> None:
        self._metrics.refused(error.status)
        await send_error(send, error)


class _Timer:
    """The timer that is set now, as it is set again and again."""

    handle: asyncio.TimerHandle

    def cancel(self) -> None:
        self.handle.cancel()


async def send_json(
    send: Any, status: int, document: Any, headers: dict[str, str] | None = None
) -> None:
    """One JSON document as the whole response."""
    body = compact(document).encode("ascii")
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in (headers or {}).items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Any, error: ApiError) -> None:
    """A refusal in OpenAI's shape."""
    await send_json(send, error.status, error.body(), error.headers)
