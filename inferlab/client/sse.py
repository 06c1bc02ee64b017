"""Which events are in a stream of server-sent events, however its bytes are cut?

Source: WHATWG HTML, section 9.2.6 (event streams). Of an event only its data counts here; lines may
end in LF or CR LF (a lone CR is legal too, but no server of this field sends one).
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

MAX_EVENT_BYTES = 4 << 20  # a chunk of a token takes a few hundred


class BadStream(ValueError):
    """Bytes that cannot be the stream that was asked for; one line says why."""


class EventParser:
    """Data of the events that are complete; what is not waits for more bytes."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that ends within `data`; BadStream for an endless one."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_EVENT_BYTES or len(self._lines) > MAX_EVENT_BYTES:
            raise BadStream(f"an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._lines.append(line[5:].strip(b" \r"))
            elif self._lines and line in (b"", b"\r"):
                events.append(b"\n".join(self._lines))
                self._lines = []
        return events

    @property
    def has_half_an_event(self) -> bool:
        """Whether bytes wait for an end that has not come."""
        return bool(self._lines or self._rest.strip())
