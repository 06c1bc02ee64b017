"""Run a long command and keep saying what it is doing. Standard library only.

`python scripts/steps.py TITLE LOG COMMAND...`
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path


def fail(message: str) -> None:
    """One line that says what is wrong and what to do, then exit 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def run_logged(title: str, command: list[str], log: Path, every_s: float = 5.0, **popen) -> int:
    """Run `command` with its output in `log`; print the newest line every `every_s` seconds.

    Returns the exit status. A failing command prints the last lines of its log.
    """
    began = time.monotonic()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        opened = log.open("w", encoding="utf-8", errors="replace")
    except OSError as error:
        fail(f"cannot write {log}: {error.strerror}; work in a copy that you can write to")
    print(f"{title} ...", flush=True)
    newest = [""]
    with opened as out:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            **popen,
        )

        def drain() -> None:
            for line in process.stdout:
                out.write(line)
                out.flush()
                if line.strip():
                    newest[0] = line.strip()

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                reader.join(every_s)
                if process.poll() is None:
                    print(f"  {time.monotonic() - began:4.0f} s  {newest[0][:110]}", flush=True)
        except KeyboardInterrupt:
            process.terminate()
            process.wait(10)
            raise
        reader.join(5)
    status = process.returncode
    took_s = time.monotonic() - began
    print(f"{title}: {'done' if status == 0 else 'FAILED'} in {took_s:.0f} s", flush=True)
    if status:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        print("\n".join(tail), file=sys.stderr)
        print(f"(whole log: {log})", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(run_logged(sys.argv[1], sys.argv[3:], Path(sys.argv[2])))
