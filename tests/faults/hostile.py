"""What the fault tests share: judging an error line, a served model, a small book to run."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))  # record_examples, tiny_models

SETUP = """
import os, pathlib, signal, time
from inferlab.profiles import current_profile
from inferlab.recorder import Case, Recorder
from inferlab.timing import StopRule
recorder = Recorder("90_probe", {"seed": 0}, current_profile())
HERE = pathlib.Path(os.environ["FAULT_LOG"])
log = (HERE / "log").open("a")
def steady(name):
    def run():
        print(name, file=log, flush=True)
        return {"step_s": 0.01}
    return Case(run, {}, {"tpot_s": 0.01})
STOP = StopRule(min_rounds=3, max_rounds=3)
"""
# A command after these words runs in its own mount namespace: nothing of it outlives the test.
PRIVATE = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]


def the_error(err: str) -> str:
    """The one error line of a failed command: the last on stderr, and no traceback above it."""
    lines = err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, err
    assert "Traceback" not in err and "unexpected" not in err, err
    assert lines[-1].startswith("error: ") and err.endswith("\n"), err
    return lines[-1]


def only_error(err: str) -> str:
    """The same, with nothing else on stderr."""
    assert err.count("\n") == 1, err
    return the_error(err)


class Book:
    """A checkout with the package, one lab and no records; the real command line runs in it."""

    def __init__(self, root: Path, log: Path):
        self.root, self.log = root, log
        shutil.copytree(ROOT / "inferlab", root / "inferlab")
        (root / "data" / "records").mkdir(parents=True)
        (root / "labs").mkdir()
        log.mkdir()

    def lab(self, body: str, name: str = "90_probe") -> None:
        cells = [SETUP, body, "recorder.finish()"]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        nbformat.write(notebook, self.root / "labs" / f"{name}.ipynb")

    def environment(self, **changes: str) -> dict[str, str]:
        return {**os.environ, "FAULT_LOG": str(self.log), **changes}

    def command(self, *arguments) -> list[str]:
        return [sys.executable, "-m", "inferlab", *map(str, arguments)]

    def cli(self, *arguments, prefix=(), **environment) -> tuple[int, str, str]:
        done = subprocess.run(
            [*prefix, *self.command(*arguments)],
            cwd=self.root,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    def script(self, text: str, *arguments) -> subprocess.CompletedProcess:
        """A shell script in a mount namespace of its own; skipped where that is not allowed."""
        if subprocess.run([*PRIVATE, "true"], capture_output=True).returncode:
            pytest.skip("this user may not make a mount namespace")
        return subprocess.run(
            [*PRIVATE, "sh", "-c", text, "sh", *map(str, arguments)],
            cwd=self.root,
            env=self.environment(PYTHON=sys.executable),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def ran(self, name: str) -> int:
        """How many times the lab ran this case, over all its processes."""
        return (self.log / "log").read_text().split().count(name)


@contextlib.contextmanager
def served(*arguments, **options):
    """(process, the line it prints when it is ready) of `inferlab serve`; killed at the end."""
    command = [sys.executable, "-m", "inferlab", "serve", "--port", "0", "--threads", "1",
               "--cache-tokens", "1024", *arguments]  # fmt: skip
    one = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
    )
    try:
        yield one, one.stdout.readline()
    finally:
        if one.poll() is None:
            for process in [*psutil.Process(one.pid).children(), one]:
                process.kill()
            one.communicate()
