"""How far a load is: a line that stays on a terminal, a line now and then elsewhere."""

import io
import re
import sys

import pytest

from inferlab.cli import progress
from inferlab.client.drive import Progress

STATE = Progress(12.3, 100, 40, 30, 2, 777)
LINE = "5 req/s, 12 s: 40 of 100 sent, 10 in flight, 28 answered, 2 failed, 777 chunks"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    def on(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.LiveProgress() as live:
            live.title = "5 req/s, "
            live(STATE)
            live(STATE)
        return "" if stream is None else stream.getvalue()

    return on


def test_a_terminal_gets_a_line_that_is_drawn_again(shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(Terminal())
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert LINE in plain and "\x1b[2K" in text  # erased: the table has the terminal for itself


def test_elsewhere_there_is_a_line_every_few_seconds(shown, monkeypatch):
    assert shown(io.StringIO()) == ""  # the run is young
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", -1.0)
    assert shown(io.StringIO()) == f"{LINE}\n{LINE}\n"


def test_a_closed_stderr_costs_nothing(shown, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", -1.0)
    assert shown(None) == ""
