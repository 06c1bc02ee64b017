"""How far is a load? A live line on a terminal, a line every few seconds elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from inferlab.cli.output import print_note

if TYPE_CHECKING:
    from inferlab.client.drive import Progress

PLAIN_EVERY_S = 10.0


class LiveProgress:
    """A context manager; call it with each state of a run, `title` names the run."""

    def __init__(self) -> None:
        self.title = ""
        self._live = None
        self._said_s = time.monotonic()

    def __enter__(self) -> LiveProgress:
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            # drawn when told to, by this thread: a second thread would take time from the client
            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, state: Progress) -> None:
        """Show it."""
        line = (
            f"{self.title}{state.elapsed_s:.0f} s: {state.sent} of {state.planned} sent, "
            f"{state.sent - state.ended} in flight, {state.ended - state.failed} answered, "
            f"{state.failed} failed, {state.chunks} chunks"
        )
        if self._live is not None:
            self._live.update(line, refresh=True)
        elif time.monotonic() - self._said_s > PLAIN_EVERY_S:
            self._said_s = time.monotonic()
            print_note(line)
