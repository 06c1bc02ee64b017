"""One request on its way: connect, send, receive, end, with every time on the way.

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable

from inferlab.client.answer import Answer
from inferlab.client.chunks import one_line
from inferlab.client.connections import Connection, Connections, Inbox
from inferlab.client.tokens import TokenCounts, count_tokens
from inferlab.trace import Request
from inferlab.workload import RequestSpec


class Flight:
    """A request that was sent; it ends once, with a status of the trace, and then calls `ended`.

    A connection that was kept open may have been closed by the server at the moment of the send:
    where not a byte came back on such a one, the request goes out again on a new connection, its
    sent time unchanged (RFC 9110, section 9.2.2, as every client of the field does).
    """

    def __init__(
        self,
        spec: RequestSpec,
        content: bytes,
        due: float,
        ended: Callable[[Flight], None],
        connections: Connections,
        inbox: Inbox,
        timeout_s: float,
    ) -> None:
        self.spec, self.due = spec, due
        self.sent = 0.0
        self.free_since = 0.0  # its user could go on: the last bytes arrived, or it was given up
        self.status = ""
        self.error: str | None = None
        self.was_resent = False
        self._content, self._ended, self._timeout_s = content, ended, timeout_s
        self._connections, self._inbox = connections, inbox
        self._connection: Connection | None = None
        self._opening: asyncio.Task | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.answer = Answer(self._answered)

    def start(self) -> None:
        """Send; a connection that is idle takes the request within this call."""
        loop = asyncio.get_running_loop()
        self.sent = max(self.due, time.perf_counter())
        self._timer = loop.call_at(self.sent + self._timeout_s, self._timed_out)
        connection = self._connections.idle()
        if connection is not None:
            self._send(connection, is_kept=True)
        else:
            self._opening = loop.create_task(self._open())

    def cancel(self, why: str) -> None:
        """End it now, with what has come so far."""
        self._end("cancelled", why)

    def request(self, start: float) -> tuple[Request, TokenCounts]:
        """Its line of the trace, times from `start`, and how its tokens were counted."""
        chunks = self.answer.chunks
        counted = count_tokens(
            [chunk.text for chunk in chunks],
            [chunk.token_ids for chunk in chunks],
            self.answer.usage,
            self.spec.output_len,
        )
        events, latest = [], self.sent
        for arrived, tokens in zip(self.answer.arrivals, counted.counts, strict=True):
            latest = max(latest, arrived)
            events.append((latest - start, tokens))
        request = Request(
            id=self.spec.id,
            scheduled=self.due - start,
            sent=self.sent - start,
            prompt_tokens=self._prompt_tokens(),
            events=tuple(events),
            status=self.status,
            error=self.error,
        )
        return request, counted

    def _prompt_tokens(self) -> int:
        """Of the usage where there is one: a chat template adds tokens to a prompt."""
        said = (self.answer.usage or {}).get("prompt_tokens")
        is_count = isinstance(said, int) and not isinstance(said, bool) and 0 < said < 10**9
        return said if is_count else self.spec.prompt_len

    async def _open(self) -> None:
        try:
            connection = await self._connections.open()
        except OSError as error:
            self._end("error", f"cannot connect: {_reason(error)}")
            return
        if self.status:  # timed out or cancelled meanwhile
            connection.close()
        else:
            self._send(connection, is_kept=False)

    def _send(self, connection: Connection, is_kept: bool) -> None:
        self._connection = connection
        put, receive = self._inbox.put, self.answer.receive

        def arrived(at: float, data: bytes | OSError) -> None:
            put(receive, at, data)

        def arrived_on_a_kept_one(at: float, data: bytes | OSError) -> None:
            connection.receiver = arrived
            if data and not isinstance(data, OSError):
                arrived(at, data)
            elif not self.status:
                self.was_resent = True
                self._opening = asyncio.get_running_loop().create_task(self._open())

        connection.receiver = arrived_on_a_kept_one if is_kept else arrived
        connection.write(self._content)

    def _answered(self, answer: Answer) -> None:
        self._end(answer.status, answer.error)

    def _timed_out(self) -> None:
        tokens = len(self.answer.chunks)
        self._end("timeout", f"no end within {self._timeout_s:g} s; {tokens} chunks had come")

    def _end(self, status: str, error: str | None) -> None:
        if self.status:
            return
        self.status, self.error = status, error
        # bytes wait to be read and parsed: the user is idle from their arrival on
        by_answer = self.answer.status and self.answer.has_begun
        self.free_since = self.answer.arrived if by_answer else time.perf_counter()
        if self._timer is not None:
            self._timer.cancel()
        opening = self._opening
        if opening is not None and not opening.done() and opening is not asyncio.current_task():
            opening.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            if status == "ok" and self.answer.keeps_connection:
                self._connections.give_back(connection)
            else:
                connection.close()
        self._ended(self)


def _reason(error: OSError) -> str:
    """Why there is no connection, without the address that asyncio writes into the text."""
    if isinstance(error, ssl.SSLError):  # its errno is one of OpenSSL's
        found = getattr(error, "verify_message", None) or error.reason or type(error).__name__
        return f"TLS: {one_line(found)}"
    return os.strerror(error.errno) if error.errno else type(error).__name__
