"""Measure this machine once: a table on the screen, and a record of lab 02 for the book's pages.

`python scripts/quick.py [--table-only]`. Nothing is measured again while package and lab are
unchanged; the table is then shown from data/local/.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "data" / "local" / "quick.txt"
STAMP = ROOT / "data" / "local" / "quick.sha256"
LAB = "02_roofline"
INFERLAB = [sys.executable, "-m", "inferlab"]
MEASURE = [
    *INFERLAB,
    "measure",
    "--batch-size",
    "1,2,4,8",
    "--prompt-len",
    "64",
    "--output-len",
    "32",
    "--time-cap-s",
    "45",
]


def code_hash() -> str:
    """Changes with the package, the Python and the command."""
    digest = hashlib.sha256(repr((MEASURE[1:], sys.version)).encode())
    for path in sorted((ROOT / "inferlab").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def show_table() -> int:
    """Predicted and measured TTFT, TPOT, throughput and MBU of this machine, by batch size."""
    now = code_hash()
    if STAMP.exists() and STAMP.read_text() == now and TABLE.exists():
        print("This machine, as measured before:")
        print(TABLE.read_text(), end="")
        return 0
    print("Measuring this machine (about a minute) ...", flush=True)
    process = subprocess.Popen(MEASURE, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603
    text = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        text += line
    status = process.wait()
    if status == 0:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(text)
        STAMP.write_text(now)
    return status


def record_lab() -> None:
    """A record of lab 02 on this machine; `inferlab run` does nothing while it is fresh."""
    if not (ROOT / "labs" / f"{LAB}.ipynb").exists():
        return
    done = subprocess.run([*INFERLAB, "run", LAB], cwd=ROOT, check=False)  # noqa: S603
    if done.returncode:
        print(
            "note: lab 02 did not finish here; the book shows the published machines only. "
            f"`inferlab run {LAB}` goes on where it stopped.",
            file=sys.stderr,
        )


def main() -> int:
    status = show_table()
    if status == 0 and "--table-only" not in sys.argv:
        record_lab()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
