"""When does the server drop the connection of a client that takes nothing any more?

Closing a connection waits until its buffer is sent, which is never where the peer only acknowledges
probes. So an answer that gives its reader up aborts the connection, and the kernel drops those
whose answer is written but not taken.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ABORT = "inferlab.abort"  # an extension of the ASGI scope: a function that drops the connection


class Protocol(HttpToolsProtocol):
    """uvicorn's, whose applications can abort their connection."""

    def on_message_begin(self) -> None:
        """Called by the parser, which begins a scope here."""
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self.transport.abort}


def abort_of(scope: Any) -> Any:
    """The function that drops the connection of `scope`; None under another server."""
    return scope.get("extensions", {}).get(ABORT)


def drop_stalled(listener: socket.socket, stalled_s: float) -> None:
    """The kernel drops connections of `listener` whose peer took nothing for `stalled_s`."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it, and passes it on
    if option is not None:
        listener.setsockopt(socket.IPPROTO_TCP, option, round(stalled_s * 1000))
