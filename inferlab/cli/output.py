"""Where a verb writes: results to stdout, as one JSON document or as tables; the rest to stderr."""

import json
import sys
from typing import Any


def print_json(value: Any) -> None:
    """One indented JSON document on stdout; NaN and infinity are refused, not written."""
    sys.stdout.write(json.dumps(value, allow_nan=False, indent=2) + "\n")


def stdout_console():
    """A rich console on stdout, as wide as the terminal; 120 columns when piped."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def one_line(text: str) -> str:
    """The text on one line without control characters: file names and files are not trusted."""
    line = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "?" for char in line)


def print_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    sys.stderr.write(f"error: {one_line(message)}\n")
    sys.stderr.flush()
