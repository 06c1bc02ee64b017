"""Which code does a lab run, and has it changed since a record was measured?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import inferlab
from inferlab.errors import UserError
from inferlab.paths import labs_folder, shown_path

MAX_NOTEBOOK_BYTES = 64 * 2**20


def code_cells(path: Path) -> list[str]:
    """Sources of the code cells of the notebook at `path`, in order; empty cells left out."""
    name = shown_path(path)
    try:
        if path.stat().st_size > MAX_NOTEBOOK_BYTES:
            raise UserError(f"{name}: larger than {MAX_NOTEBOOK_BYTES} bytes; clear its outputs")
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
    except FileNotFoundError:
        raise UserError(f"{name}: no such lab") from None
    except OSError as error:
        raise UserError(f"{name}: cannot read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{name}: not a Jupyter notebook (nbformat 4 JSON)") from None
    return [source for source in sources if source.strip()]


def lab_path(lab: str | Path, labs_dir: Path | None = None) -> Path:
    """The notebook of `lab`: a path ending in .ipynb as it is, a slug inside `labs_dir`."""
    if str(lab).endswith(".ipynb"):
        return Path(lab)
    return (labs_dir or labs_folder()) / f"{lab}.ipynb"


def code_hash(lab: str | Path, labs_dir: Path | None = None) -> str:
    """sha256 over the code cells of `lab` and the package version: changes make records stale.

    Text cells, outputs, metadata and white space at line ends do not count.
    """
    cells = [
        "\n".join(line.rstrip() for line in source.strip().splitlines())
        for source in code_cells(lab_path(lab, labs_dir))
    ]
    facts = json.dumps({"package": inferlab.__version__, "cells": cells}, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()
