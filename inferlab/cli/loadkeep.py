"""Nothing that `load` has measured is lost: traces are saved at once, and signals wait for that."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferlab.load.point import LoadPoint


class Kept:
    """The points so far; each trace is saved at `path`, or beside it where `many` come."""

    def __init__(self, path: Path | None, many: bool) -> None:
        self.points: list[LoadPoint] = []
        self.saved: list[Path] = []
        self._path, self._many = path, many

    def add(self, point: LoadPoint) -> LoadPoint:
        """Keep it, save its trace, return it; TraceError when it cannot be saved."""
        with _undivided():
            self.points.append(point)
            if self._path is not None:
                from inferlab.trace import save_trace

                self.saved.append(save_trace(point.trace, self._path_of(point)))
        return point

    def _path_of(self, point: LoadPoint) -> Path:
        if not self._many:
            return self._path
        stem, dot, ending = self._path.name.partition(".")
        number, rate = len(self.points) - 1, point.plan.rate_req_per_s
        return self._path.with_name(f"{stem}-{number:02d}-{rate:.3g}rps{dot}{ending}")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM is Ctrl-C in this block, once: `timeout` sends it to the process and to its group."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undivided() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of this block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, lambda number, _: came.append(number)) for one in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
