"""The table that `measure` and `report` print: predicted and measured, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def headline_columns() -> dict[str, tuple[str, Callable[[float | None], str]]]:
    """metric -> (name on the screen, how to write a value)."""
    from inferlab.units import format_number, format_seconds

    return {
        "ttft_s": ("TTFT", format_seconds),
        "tpot_s": ("TPOT", format_seconds),
        "output_tok_per_s": ("output tok/s", format_number),
        "mbu_ratio": ("MBU", format_number),
    }


def headline_table(title: str, *first_columns: str) -> Table:
    """An empty table: `first_columns`, then predicted and measured of each headline metric."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for name in first_columns:
        table.add_column(name, overflow="fold")
    for name, _ in headline_columns().values():
        table.add_column(f"{name}\npredicted", justify="right")
        table.add_column(f"{name}\nmeasured", justify="right", style="bold")
    return table


def headline_cells(
    predicted: dict[str, float | None], measured: dict[str, float | None], status: dict[str, str]
) -> list[str]:
    """Cells of one row: a value that is missing shows its `status` in the measured column."""
    cells = []
    for metric, (_, write) in headline_columns().items():
        value = measured.get(metric)
        cells.append("" if predicted.get(metric) is None else write(predicted[metric]))
        cells.append(status.get(metric, "") if value is None else write(value))
    return cells
