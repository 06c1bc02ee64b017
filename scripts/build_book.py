"""Build the book from clean with warnings as errors; skip it when no input changed.

`python scripts/build_book.py [--if-changed]`. An incremental build is never used: it would pass
a page whose warning the first build had reported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from steps import fail, run_logged  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
PAGE = BUILD / "html" / "index.html"
INPUTS = (
    "*.md",
    "*.yml",
    "*.bib",
    "CITATION.cff",
    "chapters/*.md",
    "labs/*.ipynb",
    "reference/*.md",
    "_assets/**/*",
    "_ext/*.py",
    "_templates/*",
    "data/**/*",
    "inferlab/**/*.py",
    "requirements.txt",
)


def inputs_hash() -> str:
    """sha256 over the names and contents of everything that a page can depend on."""
    digest = hashlib.sha256()
    paths = {path for pattern in INPUTS for path in ROOT.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build() -> int:
    """A clean build; -W makes warnings errors, -n reports missing references."""
    if BUILD.exists():
        shutil.rmtree(BUILD)
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(ROOT),
        "-W",
        "-n",
        "--keep-going",
    ]
    status = run_logged("Building the book", command, ROOT / ".make" / "book.log", cwd=ROOT)
    if status == 0 and not PAGE.exists():
        print("error: the build ended without a page: see .make/book.log", file=sys.stderr)
        return 1
    return status


def main() -> int:
    stamp = ROOT / ".make" / "book.sha256"
    before = inputs_hash()
    unchanged = stamp.exists() and stamp.read_text() == before and PAGE.exists()
    if "--if-changed" in sys.argv and unchanged:
        print("The book is up to date.")
        status = 0
    else:
        if not os.access(ROOT, os.W_OK):
            fail("this checkout is read-only: copy it to a folder that you can write to")
        stamp.unlink(missing_ok=True)
        status = build()
        if status == 0:
            stamp.write_text(before)
    if status == 0:
        print(f"The book: file://{PAGE}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
