"""What did a server answer: bytes with arrival times in, events of a stream out?

HTTP is parsed by httptools (in C), events by `sse`, chunks by `chunks`. An answer ends once, with a
status of the trace's: ok, or error with the reason.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import json
from collections.abc import Callable

import httptools

from inferlab.client.chunks import DONE, Chunk, error_message, one_line, read_chunk
from inferlab.client.sse import BadStream, EventParser

_MAX_BODY_BYTES = 1 << 16  # of an answer that is no stream: enough for an error message


class Answer:
    """The answer to one request, fed with what arrives; `ended(answer)` is called once.

    `arrivals` [events] holds the seconds of each chunk with a choice, `chunks` the chunks.
    """

    def __init__(self, ended: Callable[[Answer], None]) -> None:
        self.arrivals: list[float] = []
        self.chunks: list[Chunk] = []
        self.usage: dict | None = None
        self.status = ""  # ok | error, when it has ended
        self.error: str | None = None
        self.has_begun = False  # a byte came back
        self.keeps_connection = False
        self.http_status = 0
        self._ended = ended
        self._http = httptools.HttpResponseParser(self)
        self._events = EventParser()
        self._is_stream = False
        self._has_an_end = False  # told by a length or by a last chunk; else the close is the end
        self._is_done = self._is_finished = False  # [DONE] came; a finish_reason came
        self._body = b""
        self.arrived = 0.0  # seconds of the last bytes

    def receive(self, arrived: float, data: bytes | OSError) -> None:
        """Bytes that arrived at `arrived` seconds; b"" or an error when the connection ended."""
        if self.status:
            return
        if not data or isinstance(data, OSError):
            self._connection_ended(data)
            return
        self.has_begun, self.arrived = True, arrived
        try:
            self._http.feed_data(data)
        except BadStream as error:
            self._end("error", str(error))
        except httptools.HttpParserUpgrade:  # no HttpParserError
            self._end("error", f"HTTP {self.http_status}: the server wants another protocol")
        except httptools.HttpParserError as error:
            # what a callback of ours raised comes wrapped
            inner = error.__context__
            is_ours = isinstance(inner, BadStream)
            self._end("error", str(inner) if is_ours else f"no HTTP answer: {one_line(str(error))}")

    def text(self) -> str:
        """The text of all chunks."""
        return "".join(chunk.text for chunk in self.chunks)

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._is_stream = value.lower().startswith(b"text/event-stream")
        elif name in (b"content-length", b"transfer-encoding"):
            self._has_an_end = True

    def on_headers_complete(self) -> None:
        self.http_status = self._http.get_status_code()
        self._is_stream = self._is_stream and self.http_status == 200

    def on_body(self, data: bytes) -> None:
        if not self._is_stream:
            self._body += data[: _MAX_BODY_BYTES - len(self._body)]
            return
        for event in self._events.feed(data):
            if event == DONE:
                self._is_done = True
                continue
            chunk = read_chunk(event)
            if chunk.usage is not None:
                self.usage = chunk.usage
            if chunk.has_choice:
                self.arrivals.append(self.arrived)
                self.chunks.append(chunk)
                self._is_finished = self._is_finished or chunk.finish_reason is not None

    def on_message_complete(self) -> None:
        self.keeps_connection = self._http.should_keep_alive()
        self._message_ended()

    def _message_ended(self) -> None:
        if not self._is_stream:
            self._end("error", self._why_no_stream())
        elif self._events.has_half_an_event:
            self._end("error", "the stream ended within a chunk")
        elif self._is_done or self._is_finished:
            self._end("ok", None)
        else:
            self._end("error", "the stream ended without a finish_reason and without [DONE]")

    def _why_no_stream(self) -> str:
        try:
            message = error_message(json.loads(self._body))
        except (ValueError, RecursionError):
            message = one_line(self._body[:300])
        if self.http_status == 200:
            return f"no stream but one answer: {message}"[:300]
        return f"HTTP {self.http_status}: {message}"[:300]

    def _connection_ended(self, how: bytes | OSError) -> None:
        why = f": {how.strerror or type(how).__name__}" if isinstance(how, OSError) else ""
        is_error = self.http_status not in (0, 200)  # what came of its text says more than the loss
        if is_error or (self.http_status and not how and not self._has_an_end):
            self._message_ended()
        elif not self.has_begun:
            self._end("error", f"the server closed the connection without an answer{why}")
        elif self._is_done and not self._events.has_half_an_event:
            self._end("ok", None)  # it said that it was done; an orderly end of HTTP is missing
        elif self._events.has_half_an_event:
            self._end("error", f"the connection was lost within a chunk{why}")
        else:
            self._end("error", f"the connection was lost mid-stream{why}")

    def _end(self, status: str, error: str | None) -> None:
        if not self.status:
            self.status, self.error = status, error
            self._ended(self)
