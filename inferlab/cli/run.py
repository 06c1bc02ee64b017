"""`inferlab run`: execute labs on this machine and keep their records."""

import math
from pathlib import Path
from typing import Annotated

import typer

from inferlab.cli.output import print_json, print_note
from inferlab.errors import MeasurementError, UserError


def run(
    labs: Annotated[
        list[str] | None, typer.Argument(help="Labs: slugs, or their two digits.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every lab of the book.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the records (default: data/local).")
    ] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Most minutes of wall time for all labs.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also labs whose record is fresh.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Execute labs on this machine and keep their records; resumes what was interrupted.

    Each lab runs in a process of its own. A case that runs out of memory becomes a row with status
    `oom` and the sweep goes on. The same command run again measures only what is missing.
    """
    from dataclasses import asdict

    from inferlab.paths import data_folder, labs_folder
    from inferlab.runner import all_labs, resolve_labs, run_labs

    if budget_minutes is not None and not math.isfinite(budget_minutes):
        raise UserError("--budget-minutes needs a number of minutes; leave it out for no limit")
    if bool(labs) == everything:
        raise UserError("name the labs to run, or give --all (not both)")
    folder = labs_folder()
    chosen = resolve_labs(labs or all_labs(folder), folder)
    results = run_labs(
        chosen,
        folder,
        out or data_folder() / "local",
        budget_s=float("inf") if budget_minutes is None else budget_minutes * 60,
        force=force,
        say=print_note,
    )
    if json:
        print_json([asdict(result) for result in results])
    unfinished = [r for r in results if r.outcome not in ("measured", "fresh")]
    if unfinished:
        detail = "; ".join(f"{r.lab} {r.outcome}{_because(r)}" for r in unfinished)
        raise MeasurementError(f"{detail}: run the same command again to go on")


def _because(result) -> str:
    return f" ({result.detail})" if result.detail else ""
