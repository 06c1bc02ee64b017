"""The notebook gate itself: a dead kernel, a hollow notebook and a wrong output all fail soon."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from toc import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "notebooks"


def nbval(name: str) -> tuple[int, str, float]:
    """(exit status, output, seconds) of the gate on one fixture, with a long cell timeout."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval",
        "--nbval-current-env", "--nbval-cell-timeout=600", "--timeout=600",
        "--nbval-sanitize-with=tests/nbval_sanitize.cfg", str(FIXTURES / f"{name}.ipynb"),
    ]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def test_a_killed_kernel_fails_within_a_minute():
    status, output, took_s = nbval("kills_its_kernel")
    assert status == 1
    assert "the kernel died" in output
    assert took_s < 60


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("right_output", 0, "1 passed"),
        ("wrong_output", 1, "1 failed"),
        ("never_run", 4, "no execution count"),
    ],
)
def test_outputs_are_compared(name, status, says):
    found, output, _ = nbval(name)
    assert (found, says in output) == (status, True), output
