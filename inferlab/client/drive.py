"""What does a server do under this workload: open loop at scheduled times, or closed loop?

Open loop: each request leaves when it is due, whatever the server does. Closed loop: `concurrency`
users, each of which sends its next request when the one before has ended; arrival times of the
workload are then ignored, and a request is due when it is sent.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inferlab.client.connections import Connections, Inbox, allow_connections
from inferlab.client.flight import Flight
from inferlab.client.honesty import Limits, Watch, take_precedence, undisturbed
from inferlab.client.result import LoadRun, Record, load_run
from inferlab.client.sockets import PreciseLoop, WallClock
from inferlab.client.target import Target
from inferlab.errors import MeasurementError, UserError
from inferlab.workload import Workload

# A connection is made ready this long before its request is due; time 0 is as far from the start,
# so that the first request is as punctual as the others.
READY_S = 0.1
PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: requests sent, ended (of them failed) and in flight, chunks received."""

    elapsed_s: float
    planned: int
    sent: int
    ended: int
    failed: int
    chunks: int


def drive(
    target: Target,
    workload: Workload,
    *,
    concurrency: int | None = None,
    duration_s: float | None = None,
    prompts: Sequence[str] | None = None,
    limits: Limits | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    meta: dict[str, Any] | None = None,
    kernel_stamps: bool = True,
) -> LoadRun:
    """Send the workload to `target`; every request that was sent is accounted for in the trace.

    Without `concurrency` the loop is open. After `duration_s` nothing more is sent, and what is in
    flight may end. `prompts` are texts to send instead of the token ids, one a request.
    `kernel_stamps` False takes the times of the reads instead of the kernel's arrival times.
    `on_progress` is called twice a second from the calling thread. Ctrl-C ends the run: requests
    in flight become "cancelled", and what there is is returned. Raises UserError for values that
    make no sense, MeasurementError when the server's name cannot be looked up.

    The client runs in a thread of its own, so it may be called from a notebook.
    """
    if not workload.requests:
        raise UserError("the workload has no requests")
    if concurrency is not None and (concurrency != int(concurrency) or concurrency < 1):
        raise UserError(f"concurrency must be a whole number of at least 1, not {concurrency!r}")
    if duration_s is not None and not 0 < duration_s < float("inf"):
        raise UserError(f"the duration must be above 0 s, not {duration_s!r}")
    if prompts is not None and len(prompts) != workload.batch_size:
        raise UserError(f"{workload.batch_size} requests need as many prompts, not {len(prompts)}")
    texts = prompts if prompts is not None else [s.prompt_token_ids for s in workload.requests]
    contents = [
        target.request(spec.id, text, spec.output_len)
        for spec, text in zip(workload.requests, texts, strict=True)
    ]
    driver = _Driver(target, workload, contents, concurrency, duration_s, kernel_stamps)
    # an open loop may have all of them in flight, on a server that stands still
    allow_connections(min(concurrency or workload.batch_size, workload.batch_size))
    thread = threading.Thread(target=driver.run, name="load client", daemon=True)
    interrupted = False
    with undisturbed():
        thread.start()
        # not join(): Ctrl-C in it makes Python 3.11 believe that the thread has ended
        while True:
            try:
                while not driver.has_ended.is_set():
                    driver.has_ended.wait(PROGRESS_S)
                    if on_progress is not None:
                        on_progress(driver.progress())
                break
            except KeyboardInterrupt:
                if interrupted:
                    raise  # a second time: now
                interrupted = True
                driver.interrupt()
        thread.join()
    if driver.failure is not None:
        raise driver.failure
    return load_run(driver.record(), interrupted, limits, meta or {})


class _Driver:
    """The client's own thread: a loop in which requests are sent and answers read."""

    def __init__(self, target, workload, contents, concurrency, duration_s, stamps) -> None:
        self.failure: Exception | None = None
        self.has_ended = threading.Event()
        self._target, self._workload, self._contents = target, workload, contents
        self._concurrency, self._duration_s, self._stamps = concurrency, duration_s, stamps
        self._flights: list[Flight] = []
        self._expected = 0  # requests for which a connection was made ready
        self._ended = self._failed = 0
        # of all users of a closed loop: between requests, and for answers
        self._idle_s = self._waiting_s = 0.0
        self._is_stopped = False  # nothing more is sent
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: asyncio.Event | None = None
        self._start = 0.0
        self._lock = threading.Lock()
        self._wants_interrupt = False

    def run(self) -> None:
        """Body of the thread; a failure of the client itself is kept in `failure`."""
        self._has_precedence = take_precedence()
        try:
            with asyncio.Runner(loop_factory=PreciseLoop) as runner:
                runner.run(self._run())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            self.failure = MeasurementError(f"cannot reach {self._target.host}: {reason}")
        except Exception as error:
            self.failure = error
        finally:
            self.has_ended.set()

    def interrupt(self) -> None:
        """From another thread: send nothing more, end what is in flight."""
        with self._lock:
            self._wants_interrupt = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._interrupted)

    def progress(self) -> Progress:
        """From another thread: where the run is."""
        flights = self._flights[:]
        chunks = sum(len(flight.answer.chunks) for flight in flights)
        now = self._loop.time() - self._start if self._loop and self._start else 0.0
        planned = self._workload.batch_size
        return Progress(max(0.0, now), planned, len(flights), self._ended, self._failed, chunks)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._finished = asyncio.Event()
        clock = WallClock()
        self._connections = Connections(loop, self._target, clock, self._stamps)
        self._inbox = Inbox(loop)
        await self._connections.find()
        self._start = loop.time() + READY_S
        watch = Watch(loop, clock.resync)
        if self._duration_s is not None:
            loop.call_at(self._start + self._duration_s, self._stop)
        if self._concurrency is None:
            loop.call_at(self._due(0) - READY_S, self._expect_due)
            loop.call_at(self._due(0), self._send_due)
        else:
            for _ in range(min(self._concurrency, self._workload.batch_size)):
                self._connections.expect()
                loop.call_at(self._start, self._send_next, self._start)
        with self._lock:
            self._loop = loop
            if self._wants_interrupt:
                loop.call_soon(self._interrupted)
        try:
            await self._finished.wait()
        finally:
            self._watch, self._clock_steps = watch, clock.steps
            self._wall_s, self._cpu_s = watch.stop()
            with self._lock:
                self._loop = None
            self._connections.close()

    def _due(self, index: int) -> float:
        return self._start + self._workload.requests[index].scheduled

    def _expect_due(self) -> None:
        """Open loop: have a connection ready for everything that is soon due."""
        while not self._is_stopped and self._expected < self._workload.batch_size:
            soon = self._due(self._expected) - READY_S
            if soon > self._loop.time():
                self._loop.call_at(soon, self._expect_due)
                return
            self._expected += 1
            self._connections.expect()

    def _send_due(self) -> None:
        """Open loop: send everything that is due, and come back when the next is."""
        count = self._workload.batch_size
        while not self._is_stopped and len(self._flights) < count:
            due = self._due(len(self._flights))
            if due > self._loop.time():
                self._loop.call_at(due, self._send_due)
                return
            self._send(due)
        self._check_end()

    def _send_next(self, free_since: float) -> None:
        """Closed loop: a user who is free since then sends the next request."""
        if not self._is_stopped and len(self._flights) < self._workload.batch_size:
            now = self._loop.time()
            self._idle_s += now - free_since
            flight = self._send(now)
            flight.due = flight.sent

    def _send(self, due: float) -> Flight:
        index = len(self._flights)
        flight = Flight(
            self._workload.requests[index],
            self._contents[index],
            due,
            self._flight_ended,
            self._connections,
            self._inbox,
            self._target.timeout_s,
        )
        self._flights.append(flight)
        flight.start()
        return flight

    def _flight_ended(self, flight: Flight) -> None:
        self._ended += 1
        self._failed += flight.status != "ok"
        self._waiting_s += max(0.0, flight.free_since - flight.sent)
        if self._concurrency is not None and not self._is_stopped:
            # not at once: a server that refuses everything would keep the loop from all else
            self._loop.call_soon(self._send_next, flight.free_since)
        self._loop.call_soon(self._check_end)

    def _check_end(self) -> None:
        all_sent = self._is_stopped or len(self._flights) == self._workload.batch_size
        if all_sent and self._ended == len(self._flights):
            self._finished.set()

    def _stop(self) -> None:
        self._is_stopped = True
        self._check_end()

    def _interrupted(self) -> None:
        self._is_stopped = True
        for flight in self._flights:
            flight.cancel("interrupted")
        self._check_end()

    def record(self) -> Record:
        """After the thread's end: what happened."""
        return Record(
            target=self._target,
            workload=self._workload,
            concurrency=self._concurrency,
            flights=self._flights,
            start=self._start,
            watch=self._watch,
            wall_s=self._wall_s,
            cpu_s=self._cpu_s,
            idle_s=self._idle_s,
            waiting_s=self._waiting_s,
            clock_steps=self._clock_steps,
            has_precedence=self._has_precedence,
            kernel_stamps=self._connections.kernel_stamps,
        )
