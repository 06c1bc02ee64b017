"""How does a request get a connection: one that is open and idle, or a new one?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from contextlib import suppress

from inferlab.client.sockets import StampedSocket, TlsSocket, WallClock
from inferlab.client.target import Target

Connection = StampedSocket | TlsSocket
_OTHER_FILES = 128  # of the process, beside connections


def allow_connections(count: int) -> None:
    """Raise the soft limit of open files to what `count` connections need, up to the hard one."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has a lower limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Connections:
    """Connections to one server: kept open between requests, as the field's clients do.

    A connection is made ready before it is needed, so that a request is only bytes to write when it
    is due; a request that finds none ready connects by itself, within its own time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Target,
        clock: WallClock,
        kernel_stamps: bool = True,
    ) -> None:
        self.opened = 0
        self.kernel_stamps = kernel_stamps and not target.is_tls  # and granted, so far
        self._loop, self._target, self._clock = loop, target, clock
        self._idle: list[Connection] = []
        self._expected = 0  # requests that are soon due
        self._opening: set[asyncio.Task] = set()
        self._addresses: list[tuple] = []
        self._tls = ssl.create_default_context() if target.is_tls else None

    async def find(self) -> None:
        """Look up the server's addresses, once; OSError when there are none."""
        self._addresses = await self._loop.getaddrinfo(
            self._target.host, self._target.port, type=socket.SOCK_STREAM
        )

    def expect(self) -> None:
        """A request is soon due: see that a connection is ready for it."""
        self._expected += 1
        if len(self._idle) + len(self._opening) < self._expected:
            task = self._loop.create_task(self._open_idle())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def idle(self) -> Connection | None:
        """An open connection that nobody uses, or None."""
        self._expected = max(0, self._expected - 1)
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def open(self) -> Connection:
        """A new connection; OSError when no address of the server takes it."""
        error: OSError = ConnectionError("the server has no address")
        for family, kind, protocol, _, address in self._addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                await self._loop.sock_connect(sock, address)
                self.opened += 1
                if self._tls is None:
                    opened = StampedSocket(self._loop, sock, self._clock, None, self.kernel_stamps)
                    self.kernel_stamps = opened.has_stamps
                    return opened
                _, connection = await self._loop.create_connection(
                    TlsSocket, sock=sock, ssl=self._tls, server_hostname=self._target.host
                )
                return connection
            except OSError as refused:
                sock.close()
                error = refused
            except BaseException:
                sock.close()
                raise
        raise error

    def give_back(self, connection: Connection) -> None:
        """Keep it for the next request; whatever comes meanwhile is nobody's."""
        connection.receiver = None
        if connection.is_open:
            self._idle.append(connection)

    async def _open_idle(self) -> None:
        with suppress(OSError):  # the request that needs it will try again, and say why not
            self._idle.append(await self.open())

    def close(self) -> None:
        """Close what is idle."""
        for task in self._opening:
            task.cancel()
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class Inbox:
    """Bytes that were read but not parsed: reading first keeps arrival times exact where the read
    takes them, and parsing a few at a time keeps sends on time."""

    A_TURN = 16

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque = deque()
        self._is_due = False

    def put(self, receive, arrived: float, data) -> None:
        """Have `receive(arrived, data)` called soon, in the order of the puts."""
        self._items.append((receive, arrived, data))
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._parse_some)

    def _parse_some(self) -> None:
        items = self._items
        try:
            for _ in range(min(len(items), self.A_TURN)):
                receive, arrived, data = items.popleft()
                receive(arrived, data)
        finally:  # one answer that breaks the parser must not silence the others
            self._is_due = bool(items)
            if items:
                self._loop.call_soon(self._parse_some)
