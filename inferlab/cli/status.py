"""`inferlab status`: which records are fresh, stale, missing or bad?"""

from pathlib import Path
from typing import Annotated

import typer

from inferlab.cli.output import one_line, print_json, stdout_console
from inferlab.errors import UserError


def status(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    records: Annotated[
        list[Path] | None, typer.Option(help="Folders of records (default: the book's two).")
    ] = None,
) -> None:
    """Records by lab and device: fresh, stale, missing or bad, and why.

    Exits with 1 when a record is bad: it is not used anywhere until it is mended or removed.
    """
    from rich.markup import escape
    from rich.table import Table

    from inferlab.paths import labs_folder, shown_path
    from inferlab.records import record_states
    from inferlab.runner import all_labs

    for folder in records or []:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: --records names a folder of records")
    labs = all_labs(labs_folder())
    if not labs:
        raise UserError(f"no labs in {labs_folder()}: run this inside the book's checkout")
    states = [s for lab in labs for s in record_states(lab, records)]
    if json:
        print_json(
            [
                {
                    **state._asdict(),
                    "reasons": list(state.reasons),
                    "folder": shown_path(state.folder) if state.folder else None,
                }
                for state in states
            ]
        )
    else:
        colours = {"fresh": "green", "stale": "yellow", "missing": "yellow", "bad": "red"}
        table = Table("lab", "device", "from", "state", "why")
        for state in states:
            reasons = escape(one_line("; ".join(state.reasons)))
            mark = f"[{colours[state.state]}]{state.state}[/]"
            table.add_row(
                state.lab, escape(one_line(state.device)) or "-", state.origin or "-", mark, reasons
            )
        stdout_console().print(table)
    if any(state.state == "bad" for state in states):
        raise typer.Exit(1)
