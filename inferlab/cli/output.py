"""Where a verb writes: results to stdout, as one JSON document or as tables; the rest to stderr."""

import json
import sys
from contextlib import suppress
from typing import Any

LEAST_COLUMNS = 120


def print_json(value: Any) -> None:
    """One indented JSON document on stdout; NaN and infinity are refused, not written."""
    sys.stdout.write(json.dumps(value, allow_nan=False, indent=2) + "\n")


def stdout_console():
    """A rich console on stdout, as wide as the terminal; 120 columns when piped.

    Never narrower than LEAST_COLUMNS: tables would lose their cells, where a terminal only wraps.
    """
    from rich.console import Console

    width = Console().width if sys.stdout.isatty() else 0
    return Console(width=max(width, LEAST_COLUMNS))


def one_line(text: str) -> str:
    """The text on one line without control characters: file names and files are not trusted."""
    line = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "?" for char in line)


def print_note(message: str) -> None:
    """One line of progress or warning on stderr, whatever the message holds."""
    with suppress(OSError, ValueError, AttributeError):  # full, closed, or None: exit codes remain
        sys.stderr.write(f"{one_line(message)}\n")
        sys.stderr.flush()


def print_error(message: str) -> None:
    """The one line on stderr that says why a command failed."""
    print_note(f"error: {message}")
