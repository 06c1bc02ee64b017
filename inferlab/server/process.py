"""How does the engine get a process of its own, and how does it end with the server?

    python -m inferlab.server.process FD

The child builds the engine from the options that come over its line, says that it is ready, and
serves the line. It ends when the line does, however the server ended.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from inferlab.errors import MeasurementError, UserError
from inferlab.server.engineside import reason_of, run_engine

if TYPE_CHECKING:
    from inferlab.server.options import ServeOptions

GRACE_S = 10.0  # from the end of the line to the end by force


class EngineProcess:
    """The engine of `options` in a process; a context manager that ends it.

    `line` is the server's end. `wait_ready()` gives the engine's first stats.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.line, other = Pipe()
        with other:
            self.process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [sys.executable, "-m", "inferlab.server.process", str(other.fileno())],
                pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self.line.send(options)

    def wait_ready(self) -> Any:
        """EngineStats once the model is in memory; what it failed with otherwise."""
        try:
            said = self.line.recv()
        except (EOFError, ConnectionError):
            raise MeasurementError(f"the engine did not start: {self.ending()}") from None
        if isinstance(said, Exception):
            raise said
        return said

    def ending(self) -> str:
        """How the process ended, for a message."""
        try:
            code = self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return "its process does not answer"
        if code == -signal.SIGKILL:
            return "its process was killed, as happens when memory runs out"
        return f"its process ended with code {code}"

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.line.close()
        try:
            self.process.wait(GRACE_S if kind is None else 0.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(fd: int) -> None:
    """Build what the options say, and serve the line at `fd`."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server drains: its line says when to end
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(fd, False)
    line = Connection(fd)
    try:
        options = line.recv()
        try:
            from inferlab.server.options import build_engine

            engine = build_engine(options)
        except UserError as error:
            line.send(error)
            return
        except Exception as error:
            line.send(MeasurementError(f"the engine failed: {reason_of(error)}"))
            return
        line.send(engine.stats())
    except (EOFError, ConnectionError):
        return  # the server has ended
    gc.collect()
    gc.freeze()  # what lives as long as the server need not be searched again and again
    run_engine(engine, line)


if __name__ == "__main__":
    main(int(sys.argv[1]))
