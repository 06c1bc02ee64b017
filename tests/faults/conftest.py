"""Fixtures of the fault tests: the command line in this process, and a small book to run it in."""

import pytest
from hostile import Book


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
