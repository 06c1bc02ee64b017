"""Execute the code cells of one lab in this process, as `inferlab run` does: no Jupyter needed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from inferlab.errors import UserError
from inferlab.notebook import code_cells
from inferlab.recorder import BudgetSpent
from inferlab.runner import PARTIAL_EXIT


def execute(path: Path) -> None:
    """Run every code cell of the notebook at `path`, in order, in one fresh namespace."""
    cells = code_cells(path)
    namespace = {"__name__": "__main__"}
    for number, source in enumerate(cells, start=1):
        began = time.monotonic()
        code = compile(source, f"{path.name}, code cell {number}", "exec")
        exec(code, namespace)  # noqa: S102 - running the lab is what this module is for
        wall_s = time.monotonic() - began
        if wall_s > 2:
            print(f"    cell {number} of {len(cells)}: {wall_s:.0f} s", flush=True)


def main() -> int:
    """Exit code for the lab named on the command line.

    A second argument is a file descriptor that gets one line when the lab fails: why.
    """
    try:
        execute(Path(sys.argv[1]))
    except BudgetSpent as stop:
        print(f"    {stop}", file=sys.stderr)
        return PARTIAL_EXIT
    except UserError as error:
        _report(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:300]
        _report(f"{type(error).__name__}: {first}; the traceback is above")
        raise
    return 0


def _report(why: str) -> None:
    """Tell `inferlab run`, which ends with this line; alone on the command line, say it here."""
    if len(sys.argv) > 2:
        os.write(int(sys.argv[2]), why.encode(errors="replace")[:4000])
    else:
        print(f"error: {why}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
