"""Fixtures of the fault tests: the command line in this process, a server in another, a book."""

import subprocess
import sys

import pytest
from hostile import ROOT, Book


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    monkeypatch.setenv("INFERLAB_PROFILE", "tiny")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture
def call(capsys):
    """The command line in this process: (exit code, stdout, stderr)."""
    from inferlab.cli import app

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            app.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


@pytest.fixture
def book(tmp_path) -> Book:
    (tmp_path / "book").mkdir()
    return Book(tmp_path / "book", tmp_path / "log")


@pytest.fixture
def process(request):
    """A server as a process of its own, of the scripted engine or the tiny one: (process, port)."""
    kind = getattr(request, "param", "scripted")
    command = [sys.executable, str(ROOT / "tests" / "unit" / "server_examples.py"), kind]
    one = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    line = one.stdout.readline()
    assert line.startswith("serving tiny at http://127.0.0.1:"), one.communicate(timeout=5)
    yield one, int(line.rpartition(":")[2])
    one.kill()
    one.communicate()
