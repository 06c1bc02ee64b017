"""How do tokens get from the engine's thread to the server's event loop, and requests back?

The engine runs in a thread of its own and never waits for the loop: what a step made crosses in
one call, and wakes the loop once. Requests and cancellations wait in a queue that the thread
empties between steps. A thread is enough while the loop's work for a step is small beside the
step: torch gives the interpreter's lock away in each operator.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from inferlab.errors import MeasurementError, UserError
from inferlab.server.schema import ApiError

Token = tuple[int, str | None]  # id, and why the answer ends where it does
MAX_TAKEN = 64  # a reader that was slow gets what waits for it in pieces of this many tokens
_STOP = None  # the command that ends the thread


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


class TokenStream:
    """The tokens of one request on the loop's side, as numbers until they are sent."""

    __slots__ = (
        "arrived_s", "error", "first_s", "gone", "last_s", "max_tokens", "num_tokens", "pending",
        "prompt_token_ids", "reason", "sampling", "seq_id", "stop_token_ids", "_waiter",
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
        self.gone = False
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
    """The engine in its thread; every method is called on the event loop.

    `max_open` requests may be in the server at once, running or waiting (None: no limit).
    """

    def __init__(
        self,
        engine: Any,
        max_open: int | None = None,
        num_slots: int = 1,
        num_threads: int | None = None,
        observe: Any = None,
    ) -> None:
        self._engine, self._max_open, self._num_slots = engine, max_open, num_slots
        self._num_threads, self.observe = num_threads, observe
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._open: dict[str, TokenStream] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer_s = 1.0  # how long answers took lately
        self.failure: str | None = None  # why the engine stopped, if it did
        self.draining = False
        self.stats = engine.stats()  # as of the last step

    @property
    def num_open(self) -> int:
        """Requests that were accepted and are not answered to the end."""
        return len(self._open)

    def start(self) -> None:
        """Start the thread; its tokens go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """End the thread after its step; open requests get an error."""
        self.fail_all(ApiError(503, "the server is stopping"))
        self._commands.put(_STOP)
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

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
        self._commands.put(stream)

    def release(self, stream: TokenStream) -> None:
        """The answer is over: where the engine still works on it, it stops and frees its blocks."""
        if self._open.pop(stream.seq_id, None) is None:
            return
        if stream.reason is None and stream.error is None:
            stream.gone = True
            self._commands.put(stream.seq_id)
        else:
            self._answer_s += 0.1 * (perf_counter() - stream.arrived_s - self._answer_s)

    # The engine's thread

    def _run(self) -> None:
        try:
            if self._num_threads:
                import torch

                torch.set_num_threads(self._num_threads)
            while self._obey():
                if not self._engine.has_work:
                    continue
                outputs = self._engine.step()
                self.stats = self._engine.stats()
                if outputs:
                    self._cross(self._deliver, outputs, perf_counter())
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            self._cross(self._die, f"{type(error).__name__}: {reason}")

    def _obey(self) -> bool:
        """Take what has come in, and wait for something when there is no work; False: end."""
        wait = not self._engine.has_work
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            if command is _STOP:
                return False
            if isinstance(command, str):
                self._engine.cancel(command)
            elif not command.gone:
                self._admit(command)
            self.stats = self._engine.stats()

    def _admit(self, stream: TokenStream) -> None:
        try:
            self._engine.add_request(
                stream.seq_id,
                stream.prompt_token_ids,
                stream.max_tokens,
                sampling=stream.sampling,
                stop_token_ids=stream.stop_token_ids,
            )
        except MeasurementError as error:  # its own queue is full
            refusal = ApiError(429, str(error), code="queue_full", headers={"retry-after": "1"})
            self._cross(stream.fail, refusal)
        except UserError as error:
            self._cross(stream.fail, ApiError(400, str(error)))

    def _cross(self, call: Callable, *arguments: Any) -> None:
        """Have the loop make a call; nobody listens once it is closed."""
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    # The loop again

    def _deliver(self, outputs: Sequence[Any], now_s: float) -> None:
        for output in outputs:
            stream = self._open.get(output.seq_id)
            if stream is None:  # it was released while the step ran
                continue
            if self.observe is not None:
                self.observe.token(stream, now_s, output.finish_reason)
            if stream.first_s is None:
                stream.first_s = now_s
            stream.last_s = now_s
            stream.push(output.token_id, output.finish_reason)

    def _die(self, reason: str) -> None:
        self.failure = reason
        self.fail_all(ApiError(500, "the engine failed while it worked on this request"))

    def fail_all(self, error: ApiError) -> None:
        """Every open answer ends with `error`."""
        for stream in self._open.values():
            stream.fail(error)
