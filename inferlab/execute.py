"""Execute the code cells of one lab in this process, as `inferlab run` does: no Jupyter needed."""

from __future__ import annotations

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
    """Exit code for the lab named on the command line."""
    try:
        execute(Path(sys.argv[1]))
    except BudgetSpent as stop:
        print(f"    {stop}", file=sys.stderr)
        return PARTIAL_EXIT
    except UserError as error:
        print(f"inferlab: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
