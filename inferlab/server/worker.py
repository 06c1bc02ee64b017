"""How do tokens get from the engine's process to the server's event loop, and requests back?

What a step made comes in one message and wakes the loop once. Requests and cancellations go out
by a thread, so that the loop never waits for the engine to take them. In one process with the
engine, a loop that does next to nothing would cost it some percent of each step: waking it, and
handing the interpreter's lock to and fro.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

from inferlab.errors import MeasurementError, UserError
from inferlab.server.engineside import STOP, Add, Cancel, Died, Refused, Stepped
from inferlab.server.schema import ApiError

Token = tuple[int, str | None]  # id, and why the answer ends where it does
LAST_STEP_S = 5.0  # for the engine to end its step when the server stops
MAX_TAKEN = 64  # a reader that was slow gets what waits for it in pieces of this many tokens


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


class TokenStream:
    """The tokens of one request on the loop's side, as numbers until they are sent."""

    __slots__ = (
        "arrived_s", "counted", "error", "first_s", "gone", "last_s", "max_tokens", "num_tokens",
        "pending", "prompt_token_ids", "reason", "sampling", "seq_id", "stop_token_ids", "_waiter",
    )  # fmt: skip

    def __init__(
        self,
        seq_id: str,
        prompt_token_ids: Sequence[int],
        max_tokens: int,
        sampling: Any = None,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self.seq_id, self.prompt_token_ids = seq_id, prompt_token_ids
        self.max_tokens, self.sampling, self.stop_token_ids = max_tokens, sampling, stop_token_ids
        self.pending: list[Token] = []
        self.num_tokens, self.reason = 0, None
        self.error: Exception | None = None
        self.gone = self.counted = False  # counted: among the answered, by the metrics
        self.arrived_s, self.first_s, self.last_s = perf_counter(), None, None
        self._waiter: asyncio.Future | None = None

    async def take(self) -> list[Token]:
        """The next tokens, 1 to MAX_TAKEN; ClientGone or what went wrong instead."""
        while not self.pending:
            if self.gone:
                raise ClientGone
            if self.error is not None:
                raise self.error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.gone:
            raise ClientGone
        if len(self.pending) <= MAX_TAKEN:
            taken, self.pending = self.pending, []
        else:
            taken = self.pending[:MAX_TAKEN]
            del self.pending[:MAX_TAKEN]
        return taken

    def push(self, token_id: int, reason: str | None) -> None:
        """One token more, from the loop's own thread."""
        self.pending.append((token_id, reason))
        self.num_tokens += 1
        self.reason = reason
        self.wake()

    def fail(self, error: Exception) -> None:
        """End with an error after the tokens that are there."""
        self.error = error
        self.wake()

    def leave(self) -> None:
        """The client hung up."""
        self.gone = True
        self.wake()

    def wake(self) -> None:
        """Let `take` look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineWorker:
    """The server's side of the line to an engine; every method is called on the event loop.

    `stats` are the engine's first. `max_open` requests may be in the server at once, running or
    waiting (None: no limit). `ending` says why a line was cut.
    """

    def __init__(
        self,
        line: Connection,
        stats: Any,
        max_open: int | None = None,
        num_slots: int = 1,
        ending: Callable[[], str] = lambda: "its process has ended",
    ) -> None:
        self._line, self._max_open, self._num_slots = line, max_open, num_slots
        self.observe: Any = None  # of `prometheus`
        self._ending = ending
        self._ended: asyncio.Future[str] | None = None  # what `ending` will say
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._open: dict[str, TokenStream] = {}
        self._sender = threading.Thread(target=self._send, name="commands", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer_s = 1.0  # how long answers took lately
        self.failure: str | None = None  # why the engine stopped, if it did
        self.draining = False
        self.stats = stats  # as of the last step

    @property
    def num_open(self) -> int:
        """Requests that were accepted and are not answered to the end."""
        return len(self._open)

    def start(self) -> None:
        """Listen to the engine on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._line.fileno(), self._hear)
        self._sender.start()

    async def close(self, last_step_s: float = LAST_STEP_S) -> None:
        """End the engine's side after its step; open requests get an error.

        An engine that says nothing for `last_step_s` is left to whoever started it.
        """
        self.fail_all(ApiError(503, "the server is stopping"))
        self._loop.remove_reader(self._line.fileno())
        self._commands.put(STOP)
        await self._loop.run_in_executor(None, self._hear_out, last_step_s)
        if self._ended is not None:
            self.failure = await self._ended
        self._line.close()

    def check_open(self) -> None:
        """ApiError where no request is taken now: 503 when stopping or failed, 429 when full."""
        if self.failure is not None:
            raise ApiError(503, "the engine has stopped; the server must be started again")
        if self.draining:
            raise ApiError(
                503,
                "the server is stopping and takes no new requests",
                headers={"retry-after": "5"},
            )
        if self._max_open is not None and len(self._open) >= self._max_open:
            wait_s = min(60, max(1, math.ceil(self._answer_s / self._num_slots)))
            raise ApiError(
                429,
                f"{len(self._open)} requests run or wait, as many as this server takes: try again "
                "later",
                code="queue_full",
                headers={"retry-after": str(wait_s)},
            )

    def submit(self, stream: TokenStream) -> None:
        """Hand a request to the engine; ApiError where `check_open` refuses."""
        self.check_open()
        self._open[stream.seq_id] = stream
        self._commands.put(
            Add(
                stream.seq_id,
                stream.prompt_token_ids,
                stream.max_tokens,
                stream.sampling,
                stream.stop_token_ids,
            )
        )

    def release(self, stream: TokenStream) -> None:
        """The answer is over: where the engine still works on it, it stops and frees its blocks."""
        if self._open.pop(stream.seq_id, None) is None:
            return
        if stream.reason is None and stream.error is None:
            self._commands.put(Cancel(stream.seq_id))
        else:
            self._answer_s += 0.1 * (perf_counter() - stream.arrived_s - self._answer_s)

    def fail_all(self, error: ApiError) -> None:
        """Every open answer ends with `error`."""
        for stream in self._open.values():
            stream.fail(error)

    def _send(self) -> None:
        """The thread that hands out commands: it may wait for the engine, the loop may not."""
        while True:
            command = self._commands.get()
            try:
                self._line.send(command)
            except OSError:  # the engine has ended: `_hear` sees it too
                return
            if command is STOP:
                return

    def _hear(self) -> None:
        try:
            said = self._line.recv()
        except (EOFError, ConnectionError):
            self._loop.remove_reader(self._line.fileno())
            said = Died("its process has ended")
            if self.failure is None:  # in a thread: it waits for the process
                self._ended = self._loop.run_in_executor(None, self._ending)
        if isinstance(said, Stepped):
            self.stats = said.stats
            self._deliver(said.tokens, said.at_s)
        elif isinstance(said, Refused):
            if (stream := self._open.get(said.seq_id)) is not None:
                stream.fail(_refusal_of(said.error))
        elif self.failure is None:
            self.failure = said.reason
            self.fail_all(ApiError(500, "the engine failed while it worked on this request"))

    def _hear_out(self, silence_s: float) -> None:
        """Let the engine say what it still has to say, until it hangs up or is silent."""
        with contextlib.suppress(EOFError, OSError):
            while self._line.poll(silence_s):
                self._line.recv()

    def _deliver(self, tokens: Sequence[tuple[str, int, str | None]], at_s: float) -> None:
        for seq_id, token_id, reason in tokens:
            stream = self._open.get(seq_id)
            if stream is None:  # it was released while the step ran
                continue
            if self.observe is not None:
                self.observe.token(stream, at_s, reason)
            if stream.first_s is None:
                stream.first_s = at_s
            stream.last_s = at_s
            stream.push(token_id, reason)


def _refusal_of(error: UserError) -> ApiError:
    if isinstance(error, MeasurementError):  # its own queue is full
        return ApiError(429, str(error), code="queue_full", headers={"retry-after": "1"})
    return ApiError(400, str(error))
