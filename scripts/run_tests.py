"""Run every gate of the book, one after another, and print the closing line of each.

`python scripts/run_tests.py [GATE ...]`, gates: lint unit book pages labs chapters browser.
All gates run even when one fails; the exit status says whether all passed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-ra", "--color=no"]
NBVAL = [
    "--nbval",
    "--nbval-current-env",
    "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
    "-p",
    "no:cacheprovider",
]
CLOSING_LINE = re.compile(r"\b(passed|failed|error|errors|skipped|no tests ran)\b.* in \d")


def lab_paths() -> list[str]:
    """Labs, in order; names that begin with an underscore are templates."""
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("labs/[0-9]*.ipynb"))


def chapter_paths() -> list[str]:
    """Chapters as the build executed them."""
    folder = ROOT / "_build" / "jupyter_execute" / "chapters"
    return sorted(str(path.relative_to(ROOT)) for path in folder.glob("*.ipynb"))


def notebook_gate(paths: list[str], cell_s: int, total_s: int, *more: str) -> list[str]:
    """One nbval command; an empty list of notebooks is an error, not a pass."""
    limits = [f"--nbval-cell-timeout={cell_s}", f"--timeout={total_s}"]
    missing = [sys.executable, "-c", "raise SystemExit('error: no notebook found for this gate')"]
    return [*PYTEST, *NBVAL, *limits, *more, *paths] if paths else missing


GATES: dict[str, Callable[[], list[str]]] = {
    "lint": lambda: [sys.executable, "-m", "ruff", "check", "."],
    "unit": lambda: [
        *PYTEST,
        "tests",
        "--ignore=tests/book",
        "-n",
        "2",
        "--dist",
        "loadscope",
        "--timeout=300",
    ],
    "book": lambda: [sys.executable, "scripts/build_book.py"],
    "pages": lambda: [*PYTEST, "tests/book", "-m", "not browser", "--timeout=300"],
    # One lab at a time: its orderings and bands are timed on this machine.
    "labs": lambda: notebook_gate(lab_paths(), 120, 300),
    "chapters": lambda: notebook_gate(chapter_paths(), 120, 300, "-n", "2", "--dist", "loadfile"),
    "browser": lambda: [
        *PYTEST,
        "tests/book",
        "-m",
        "browser",
        "-n",
        "2",
        "--timeout=600",
    ],
}


# Exported before, so that no line about it lands in a compared output: the peer of lab 10 (about
# 10 s) and the graph of lab 27 (about 20 s), each once a machine.
PREPARE = {
    "labs": [
        [sys.executable, "-m", f"inferlab.models.{name}"] for name in ("onnx_export", "onnx_step")
    ]
}


def run_gate(name: str) -> tuple[bool, str, float]:
    """(passed, closing line, seconds); the output is shown while it runs."""
    command = GATES[name]()
    print(f"\n== {name}", flush=True)
    began = time.monotonic()
    settings = {
        **os.environ,
        "INFERLAB_PROFILE": "tiny",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Beside other work, OpenMP threads that spin while they wait stretch a lab tenfold. Never
        # set it for a record: steps then take somewhat longer.
        "GOMP_SPINCOUNT": "1000",
    }
    settings.pop("RECORD", None)
    closing = ""
    for preparation in PREPARE.get(name, []):
        subprocess.run(preparation, cwd=ROOT, env=settings, check=False)  # noqa: S603
    process = subprocess.Popen(  # noqa: S603
        command,
        cwd=ROOT,
        env=settings,
        text=True,
        encoding="utf-8",
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if CLOSING_LINE.search(line):
                closing = line.strip(" =\n")
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(30)
        raise SystemExit(130) from None
    return status == 0, closing, time.monotonic() - began


def main() -> int:
    names = sys.argv[1:] or list(GATES)
    unknown = [name for name in names if name not in GATES]
    if unknown:
        print(f"error: unknown gate {unknown[0]!r}: use {', '.join(GATES)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    results = {name: run_gate(name) for name in names}
    print("\n== summary")
    for name, (passed, closing, took_s) in results.items():
        print(f"{'pass' if passed else 'FAIL'}  {name:<9} {took_s:5.0f} s  {closing}")
    good = all(passed for passed, _, _ in results.values())
    print(
        f"{'all gates passed' if good else 'SOME GATES FAILED'} in {time.monotonic() - began:.0f} s"
    )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
