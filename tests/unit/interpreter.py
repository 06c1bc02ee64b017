"""Run a file of tests in Triton's interpreter.

TRITON_INTERPRET is read when triton is imported, and would change what other tests see: so the file
has a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path


def check_interpreted(name):
    """Every test of `name`, a file beside this one, has to run and pass."""
    file = Path(__file__).with_name(name)
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""},
        cwd=file.parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "skipped" not in answer.stdout
