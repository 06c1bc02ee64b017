"""When did these bytes arrive at this machine, whatever the event loop was doing at that moment?

Linux stamps each packet when it arrives (SO_TIMESTAMPNS) and hands the time over with the bytes, so
a busy client reads late but does not stamp late. Where there is no such stamp (another system,
TLS) the time of the read is taken.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import select
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

# asm-generic/socket.h; the socket module does not name it. The kernel answers with the same number.
_SO_TIMESTAMPNS = 35
_STAMP = struct.Struct("@qq")  # seconds, nanoseconds of CLOCK_REALTIME
_READ_BYTES = 1 << 16

# (arrival in seconds of perf_counter, bytes; b"" at the end, or the error that ended it)
Receiver = Callable[[float, "bytes | OSError"], None]


class PreciseSelector(selectors.DefaultSelector):
    """epoll that wakes at the microsecond: its own timeout is rounded up to a millisecond."""

    def select(self, timeout: float | None = None):
        if timeout is not None and timeout > 0 and hasattr(self, "fileno"):
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class PreciseLoop(asyncio.SelectorEventLoop):
    """An event loop on perf_counter whose timers fire within the kernel's timer slack."""

    def __init__(self) -> None:
        super().__init__(PreciseSelector())

    def time(self) -> float:
        return time.perf_counter()


class WallClock:
    """Turns the kernel's stamps (wall clock) into perf_counter; notices a clock that was set."""

    STEP_S = 1e-3

    def __init__(self) -> None:
        self.steps = 0
        self._base_s = int(time.time())
        self._offset_s = self._measure()

    def from_stamp(self, seconds: int, nanoseconds: int) -> float:
        """perf_counter at a wall-clock time."""
        return seconds - self._base_s + nanoseconds * 1e-9 + self._offset_s

    def resync(self) -> None:
        """Measure again; both clocks run at one rate, so only setting the clock moves this."""
        offset = self._measure()
        if abs(offset - self._offset_s) > self.STEP_S:
            self.steps += 1
        self._offset_s = offset

    def _measure(self) -> float:
        best = (float("inf"), 0.0)
        base_ns = self._base_s * 1_000_000_000
        for _ in range(5):  # the pair of reads with the least between them
            before = time.perf_counter()
            wall_ns = time.time_ns() - base_ns
            after = time.perf_counter()
            best = min(best, (after - before, (before + after) / 2 - wall_ns * 1e-9))
        return best[1]


class StampedSocket:
    """A connected socket: `receiver(arrival, bytes)` for what comes, `write` for what goes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        clock: WallClock,
        receiver: Receiver | None = None,
        wants_stamps: bool = True,
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.has_stamps = False
        if wants_stamps and sys.platform == "linux":
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                self.has_stamps = True
        self.receiver = receiver
        self.is_open = True
        self._loop, self._sock, self._clock = loop, sock, clock
        self._unsent = b""
        loop.add_reader(sock, self._read)

    def write(self, data: bytes) -> None:
        """Send now; what the kernel does not take at once follows when it can."""
        if not self.is_open:
            return
        if not self._unsent:
            data = data[self._send(data) :]
            if data and self.is_open:
                self._loop.add_writer(self._sock, self._send_rest)
        self._unsent += data

    def close(self, reset: bool = False) -> None:
        """Close, at once and for good; `reset` tells the other side that it was no orderly end."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if reset:
            with suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def _read(self) -> None:
        try:
            if self.has_stamps:
                data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, 64)
            else:
                data, ancillary = self._sock.recv(_READ_BYTES), ()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        now = time.perf_counter()
        if not data:
            self._end(b"")
            return
        arrived = now
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                arrived = min(now, self._clock.from_stamp(*_STAMP.unpack_from(value)))
        if self.receiver is not None:
            self.receiver(arrived, data)

    def _end(self, how: bytes | OSError) -> None:
        receiver = self.receiver
        self.close()
        if receiver is not None:
            receiver(time.perf_counter(), how)

    def _send(self, data: bytes) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            # What the other side said before it closed may still be there to read.
            self._loop.call_soon(self._fail, error)
            return len(data)

    def _fail(self, error: OSError) -> None:
        if self.is_open:
            self._read()
        if self.is_open:
            self._end(error)

    def _send_rest(self) -> None:
        self._unsent = self._unsent[self._send(self._unsent) :]
        if not self._unsent and self.is_open:
            self._loop.remove_writer(self._sock)


class TlsSocket(asyncio.Protocol):
    """The same for a TLS connection, whose bytes are stamped when they are read."""

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.is_open = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport) -> None:
        self._transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        if self.receiver is not None:
            self.receiver(time.perf_counter(), data)

    def connection_lost(self, error: Exception | None) -> None:
        was_open, self.is_open = self.is_open, False
        if was_open and self.receiver is not None:
            how = error if isinstance(error, OSError) else OSError(str(error)) if error else b""
            self.receiver(time.perf_counter(), how)

    def write(self, data: bytes) -> None:
        """Send now or when the kernel can take it."""
        self._transport.write(data)

    def close(self, reset: bool = False) -> None:
        """Close at once."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()
