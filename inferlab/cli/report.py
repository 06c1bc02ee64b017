"""`inferlab report`: this machine beside the published ones."""

from typing import Annotated

import typer

from inferlab.cli.output import one_line, print_json, print_note, stdout_console
from inferlab.errors import UserError


def report(
    labs: Annotated[
        list[str] | None, typer.Argument(help="Labs: slugs, or their two digits (default: all).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predicted and measured TTFT, TPOT, throughput and MBU of every device with records."""
    from dataclasses import asdict

    from inferlab.paths import labs_folder
    from inferlab.report import report_rows
    from inferlab.runner import all_labs, resolve_labs

    folder = labs_folder()
    rows = report_rows(resolve_labs(labs or all_labs(folder), folder), say=print_note)
    if not rows:
        raise UserError("no records to report: `inferlab run 02_roofline` measures this machine")
    if json:
        print_json([asdict(row) for row in rows])
    else:
        _print_tables(rows)


def _print_tables(rows) -> None:
    """One table a lab and device: a row a case, predicted and measured side by side."""
    from rich.markup import escape

    from inferlab.cli.tables import headline_cells, headline_table

    console = stdout_console()
    groups: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        key = (row.lab, row.device, row.origin, row.label, row.stale)
        groups.setdefault(key, {}).setdefault(row.case, {})[row.metric] = row
    for (lab, device, origin, label, stale), cases in groups.items():
        whose = "this machine" if origin == "local" else "published"
        title = f"{lab} on {device} ({whose}, {label}{', stale' if stale else ''})"
        table = headline_table(title, "case")
        for case, found in cases.items():
            predicted = {metric: row.predicted for metric, row in found.items()}
            measured = {metric: row.median for metric, row in found.items()}
            status = {metric: row.status for metric, row in found.items()}
            table.add_row(escape(one_line(case)), *headline_cells(predicted, measured, status))
        console.print(table)
