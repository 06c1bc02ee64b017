"""What have others published, under which conditions, and where can it be read?

`data/cited/*.yml`: only figures that were read at their source (`primary`), in its headline or
abstract (`abstract`), or that follow by arithmetic from such figures (`derived`, with the sum).
Peak rates of `hardware.datasheets` are served here too, as `datasheet-<device>-...`.
"""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from inferlab.datafile import DataError, load_yaml
from inferlab.errors import UserError
from inferlab.hardware.datasheets import DATASHEETS
from inferlab.paths import data_folder, shown_path
from inferlab.units import format_bytes, format_number, format_rate, format_seconds

Line = Annotated[str, StringConstraints(min_length=1, max_length=500)]
FigureId = Annotated[str, StringConstraints(max_length=90, pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")]
Unit = Literal[
    "tok_per_s", "s", "s_per_token", "bytes", "bytes_per_s", "flops_per_s", "ratio", "tokens",
]  # fmt: skip


class Source(BaseModel):
    """Where a figure was published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Line
    url: Annotated[str, StringConstraints(max_length=300, pattern=r"^https://[^\s<>\"']+$")]
    date: Annotated[str, StringConstraints(pattern=r"^\d{4}(-\d{2}){0,2}$")] | None = None


class Figure(BaseModel):
    """One published number in SI units (a ratio for percentages and factors)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: FigureId
    value: float
    unit: Unit
    what: Line
    conditions: Line
    evidence: Literal["primary", "abstract", "derived"]
    source: Source
    how: Line | None = None  # the arithmetic behind a derived figure
    note: Line | None = None

    @model_validator(mode="after")
    def _derivation_is_shown(self) -> Figure:
        if (self.evidence == "derived") != (self.how is not None):
            raise ValueError(f"{self.id}: `how` belongs to derived figures, and to each of them")
        return self

    @property
    def text(self) -> str:
        """The number with its unit, as prose shows it."""
        return format_quantity(self.value, self.unit)

    @property
    def reference(self) -> str:
        """One line for a caption: label, source, date, conditions."""
        date = f", {self.source.date}" if self.source.date else ""
        word = "derived from" if self.evidence == "derived" else "cited:"
        return f"{word} {self.source.title}{date}; {self.conditions}"


class _SourceEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source
    figures: Annotated[list[dict], Field(min_length=1)]


class _CitedFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: list[_SourceEntry]


def format_quantity(value: float, unit: str) -> str:
    """`value` in `unit` with three digits and a prefix: "107 tok/s", "3.35 TB/s", "0.72"."""
    if unit in ("s", "s_per_token"):
        return format_seconds(value) + (" per token" if unit == "s_per_token" else "")
    if unit == "bytes":
        return format_bytes(value)
    rates = {"tok_per_s": "tok/s", "bytes_per_s": "B/s", "flops_per_s": "FLOP/s"}
    if unit in rates:
        return format_rate(value, rates[unit])
    return format_number(value)


def load_cited(folder: Path | None = None) -> dict[str, Figure]:
    """Every figure by id; DataError names the file of a bad or repeated one."""
    folder = folder or data_folder() / "cited"
    figures = {figure.id: figure for figure in _datasheet_figures()}
    for path in sorted(folder.glob("*.yml")):
        for entry in load_yaml(path, _CitedFile).sources:
            for fields in entry.figures:
                try:
                    figure = Figure(source=entry.source, **fields)
                except (ValueError, TypeError) as error:
                    name = fields.get("id", "a figure without id")
                    raise DataError(f"{shown_path(path)}: {name}: {_reason(error)}") from None
                if figure.id in figures:
                    raise DataError(f"{shown_path(path)}: {figure.id} is already cited")
                figures[figure.id] = figure
    return figures


def _reason(error: Exception) -> str:
    from pydantic import ValidationError

    from inferlab.datafile import first_problem

    return first_problem(error) if isinstance(error, ValidationError) else str(error)


def _datasheet_figures() -> list[Figure]:
    figures = []
    for key, sheet in DATASHEETS.items():
        rates = {
            "read-bytes-per-s": ("memory bandwidth", sheet.read_bytes_per_s, "bytes_per_s"),
            "memory-bytes": ("memory", sheet.memory_bytes, "bytes"),
        }
        for dtype, rate in sheet.flops_per_s.items():
            name = f"{dtype.replace('_', '-')}-flops-per-s"
            rates[name] = (f"dense {dtype} rate", rate, "flops_per_s")
        figures += [
            Figure(
                id=f"datasheet-{key}-{name}",
                value=value,
                unit=unit,
                what=f"{sheet.name}: {what}",
                conditions="peak rate of the maker, no sparsity",
                evidence="primary",
                source=Source(title=sheet.source, url=sheet.url),
            )
            for name, (what, value, unit) in rates.items()
        ]
    return figures


@functools.cache
def _all() -> dict[str, Figure]:
    return load_cited()


def get(figure_id: str) -> Figure:
    """The cited figure called `figure_id`; the error proposes the nearest ids."""
    figures = _all()
    if figure_id not in figures:
        near = difflib.get_close_matches(figure_id, figures, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"no cited figure {figure_id!r} in data/cited{hint}")
    return figures[figure_id]


def contradictions(figures: dict[str, Figure]) -> list[tuple[str, str, float]]:
    """(figure, ceiling, factor) for figures that exceed the figure called `<id>-ceiling`.

    A published rate above what the memory bandwidth allows cannot be a measurement of what its
    conditions say. Largest factor first.
    """
    found = []
    for figure in figures.values():
        ceiling = figures.get(f"{figure.id}-ceiling")
        if ceiling and ceiling.unit == figure.unit and figure.value > ceiling.value:
            found.append((figure.id, ceiling.id, figure.value / ceiling.value))
    return sorted(found, key=lambda row: -row[2])


def ratio(numerator: str, denominator: str) -> float:
    """Ratio of two cited figures of one unit."""
    top, bottom = get(numerator), get(denominator)
    if top.unit != bottom.unit or not bottom.value:
        raise UserError(f"{numerator} and {denominator} have no ratio (units differ, or a zero)")
    return top.value / bottom.value
