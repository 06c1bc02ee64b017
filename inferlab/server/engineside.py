"""What do engine and server say to each other, and what does the engine's side do all day?

The two ends of a line (`multiprocessing.Pipe`), in two processes: the engine steps while the
server writes to its clients, and neither waits for the other's lock. Between two steps the engine
takes what has come in, and tells what the last one made.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, NamedTuple

from inferlab.errors import UserError

STOP = None  # the command that ends the engine's side


class Add(NamedTuple):
    """A request to put in line."""

    seq_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: Any
    stop_token_ids: tuple[int, ...]


class Cancel(NamedTuple):
    """A request that nobody waits for any more."""

    seq_id: str


class Stepped(NamedTuple):
    """What a step made: (request, token id, why its answer ends) and the engine's counters."""

    tokens: list[tuple[str, int, str | None]]
    at_s: float  # of perf_counter, which all processes of a machine share on Linux
    stats: Any


class Refused(NamedTuple):
    """A request that the engine does not take."""

    seq_id: str
    error: UserError


class Died(NamedTuple):
    """Why the engine has stopped."""

    reason: str


def run_engine(engine: Any, line: Connection) -> None:
    """Obey, step and tell, until STOP comes or nobody is at the other end."""
    try:
        while _obey(engine, line):
            outputs = engine.step() if engine.has_work else ()
            tokens = [(o.seq_id, o.token_id, o.finish_reason) for o in outputs]
            line.send(Stepped(tokens, perf_counter(), engine.stats()))
    except (EOFError, ConnectionError):
        pass
    except Exception as error:
        with contextlib.suppress(OSError):
            line.send(Died(reason_of(error)))
    finally:
        line.close()


def reason_of(error: Exception) -> str:
    """What went wrong, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _obey(engine: Any, line: Connection) -> bool:
    """Take what has come in, and wait for something when there is no work; False: end."""
    commands = []
    while line.poll() or not (commands or engine.has_work):
        commands.append(line.recv())
    gone = {command.seq_id for command in commands if isinstance(command, Cancel)}
    for command in commands:
        if command is STOP:
            return False
        if isinstance(command, Cancel):
            engine.cancel(command.seq_id)
        elif command.seq_id not in gone:  # nobody waits for it any more: not even added
            _admit(engine, line, command)
    return True


def _admit(engine: Any, line: Connection, command: Add) -> None:
    try:
        engine.add_request(
            command.seq_id,
            command.prompt_token_ids,
            command.max_tokens,
            sampling=command.sampling,
            stop_token_ids=command.stop_token_ids,
        )
    except UserError as error:
        line.send(Refused(command.seq_id, error))
