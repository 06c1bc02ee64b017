"""How does a server end when the process that started it is gone, however that one ended?

`python -m inferlab.underload.leash MODULE [ARGUMENT ...]` runs a module as `python -m` would. Its
standard input is a pipe that the starter holds open; when the pipe closes, the starter is gone
(even by SIGKILL), and this process asks itself to end, then ends itself and its children for sure,
and removes the scratch folder that it runs in.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

SCRATCH_PREFIX = "inferlab-server-"  # how `launch` names the folder
GRACE_S = 5.0  # from the request to end to the end by force


def hold(read_end: int, grace_s: float = GRACE_S) -> None:
    """Wait until the pipe closes, then end this process; runs in a thread."""
    try:
        while os.read(read_end, 64):
            pass
    except OSError:
        pass
    if Path.cwd().name.startswith(SCRATCH_PREFIX):
        shutil.rmtree(Path.cwd(), ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    if os.getpgrp() == os.getpid():  # a group of our own: the children go along
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Run `arguments[0]` as a module with the rest as its command line, on the leash."""
    if not arguments:
        raise SystemExit("usage: python -m inferlab.underload.leash MODULE [ARGUMENT ...]")
    threading.Thread(target=hold, args=(sys.stdin.fileno(),), daemon=True, name="leash").start()
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
