"""How does the book draw records? One calm style, one colour per variant, units on every axis.

Figures take tables of records (`Record.table(metric)`), never tensors. Measured points carry their
95 % interval, a prediction is a dashed line, a case that ran out of memory is a mark on the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd

from inferlab.errors import UserError
from inferlab.plot_style import (
    BROWN,
    COLORS,
    GREEN,
    GREY,
    INK,
    PAPER,
    PURPLE,
    QUIET,
    STYLES,
    TITLES,
    Style,
    axis_unit,
    figure,
    style_of,
    use_style,
)
from inferlab.records import Record
from inferlab.stats import PowerLaw, fit_power_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLORS", "LABELS", "STYLES", "Style", "axis_unit", "by_batch_size", "by_context",
    "caption", "figure", "label_badge", "plain_ticks", "predicted_vs_measured", "style_of", "tidy",
    "use_style",
]  # fmt: skip

LABELS = ("measured", "emulated", "cited")


def predicted_vs_measured(
    ax: Axes, table: pd.DataFrame, metric: str = "tpot_s", by: str = "backend", band: float = 0.2
) -> None:
    """Measured against predicted on two equal logarithmic axes; on the line they agree.

    `table` is `record.table(metric)`. The band is `band` to either side of the prediction.
    """
    rows = _measured(table, "predicted", "median")
    factor, label = axis_unit(metric, rows["median"])
    ends = np.array(
        [rows[["predicted", "low"]].min().min(), rows[["predicted", "high"]].max().max()]
    )
    ends = ends * factor * np.array([0.7, 1.4])
    ax.fill_between(ends, ends * (1 - band), ends * (1 + band), color=GREY, alpha=0.18, lw=0,
                    label=f"±{band:.0%}")  # fmt: skip
    ax.plot(ends, ends, color=INK, lw=1.2, ls="--", label="prediction")
    for variant, group in _groups(rows, by):
        style = style_of(variant)
        ax.errorbar(
            group["predicted"] * factor, group["median"] * factor, yerr=_errors(group, factor),
            fmt=style.marker, color=style.color, mec="white", label=variant, capsize=0,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ax.set(xlabel=f"predicted {label}, log scale", ylabel=f"measured {label}, log scale")
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    _legend(ax)


def by_batch_size(
    ax: Axes, table: pd.DataFrame, metric: str = "tpot_s", by: str = "backend", log: bool = False
) -> None:
    """A metric over batch size (logarithmic, ticks at the sizes that were run), one line each.

    Measured points with intervals, the prediction as a dashed line of the same colour, cases that
    ran out of memory as crosses on the lower frame.
    """
    _by(ax, table, metric, "batch_size", by, log)
    _ticks_at(ax, table["batch_size"])
    if not log:
        ax.set_ylim(bottom=0)
    _legend(ax)


def by_context(
    ax: Axes, table: pd.DataFrame, metric: str = "tpot_s", by: str = "cache",
    x: str = "context_len", fit: bool = True,
) -> dict[str, PowerLaw]:  # fmt: skip
    """A metric over context on two logarithmic axes, with the fitted exponent in the legend.

    Returns variant -> fit. A fit needs two different lengths; an exponent near 0 means that the
    context does not matter in this range, near 1 that the cost grows in proportion.
    """
    fits = {}
    for variant, group in _groups(_measured(table, x, "median"), by):
        if fit and group[x].nunique() > 1:
            fits[variant] = fit_power_law(group[x], group["median"])
    names = {v: f"{v}: ∝ n$^{{{law.exponent:.2f}}}$" for v, law in fits.items()}
    _by(ax, table, metric, x, by, log=True, names=names)
    _ticks_at(ax, table[x])
    plain_ticks(ax.yaxis)
    _legend(ax)
    return fits


def _by(
    ax: Axes, table: pd.DataFrame, metric: str, x: str, by: str, log: bool,
    names: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    rows = _measured(table, x, "median")
    factor, label = axis_unit(metric, rows["median"])
    for variant, group in _groups(rows, by):
        style, group = style_of(variant), group.sort_values(x)
        ax.errorbar(
            group[x], group["median"] * factor, yerr=_errors(group, factor), capsize=0,
            marker=style.marker, color=style.color, ls=style.linestyle, mec="white",
            label=(names or {}).get(variant, variant),
        )  # fmt: skip
    for variant, group in _groups(_measured(table, x, "predicted"), by):
        group = group.sort_values(x)
        ax.plot(group[x], group["predicted"] * factor, ls="--", lw=1.3, alpha=0.8,
                color=style_of(variant).color)  # fmt: skip
    if table["predicted"].notna().any():
        ax.plot([], [], ls="--", lw=1.3, color=QUIET, label="prediction")
    lost = table[table["status"] != "ok"]
    for status, group in lost.groupby("status"):
        words = {"oom": "out of memory"}.get(status, status)
        ax.plot(group[x], [0.015] * len(group), "x", color=INK, ms=8, mew=2, label=words,
                transform=ax.get_xaxis_transform(), clip_on=False)  # fmt: skip
    ax.set(xlabel=f"{TITLES.get(x, x.replace('_', ' '))}, log scale", ylabel=label)
    if log:
        ax.set_yscale("log")
        ax.set_ylabel(f"{label}, log scale")


def label_badge(ax: Axes, label: str) -> None:
    """Say on the figure what its numbers are: measured, emulated or cited; never mixed."""
    if label not in LABELS:
        raise UserError(f"no label {label!r}: a figure is {', '.join(LABELS[:-1])} or {LABELS[-1]}")
    color = {"measured": GREEN, "emulated": PURPLE, "cited": BROWN}[label]
    ax.annotate(
        label, (1, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
        ha="right", va="bottom", fontsize=11, color=INK,
        bbox={"boxstyle": "round,pad=0.25", "fc": PAPER, "ec": color, "lw": 1.4},
    )  # fmt: skip


def caption(records: Record | Sequence[Record], note: str = "") -> str:
    """Plain text for a caption: each record's provenance, then `note`. Escape it before HTML."""
    found = [records] if isinstance(records, Record) else list(records)
    if not found:
        raise UserError("a caption needs at least one record")
    labels = {record.manifest.label for record in found}
    if len(labels) > 1:
        raise UserError("measured and emulated records do not belong in one figure")
    lines = dict.fromkeys(record.provenance for record in found)
    return "; ".join(lines) + "." + (f" {note}" if note else "")


def tidy(tables: Mapping[str, pd.DataFrame], column: str = "device") -> pd.DataFrame:
    """Tables of several records as one, with their names in `column`."""
    parts = [table.assign(**{column: name}) for name, table in tables.items() if not table.empty]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _measured(table: pd.DataFrame, *needed: str) -> pd.DataFrame:
    missing = [name for name in (*needed, "status") if name not in table]
    if missing:
        raise UserError(
            f"the table has no column {missing[0]!r}; it has {', '.join(table.columns)}"
        )
    return table.dropna(subset=list(needed))


def _groups(rows: pd.DataFrame, by: str) -> list[tuple[str, pd.DataFrame]]:
    """Groups by variant in the order of STYLES, so that legends agree between figures."""
    if by not in rows:
        return [("measured", rows)] if len(rows) else []
    order = {name: rank for rank, name in enumerate(STYLES)}
    groups = [(str(name), group) for name, group in rows.groupby(by)]
    return sorted(groups, key=lambda item: order.get(item[0], len(order)))


def _errors(group: pd.DataFrame, factor: float) -> np.ndarray:
    """Distances to the ends of the interval; nothing where there is no interval."""
    low = (group["median"] - group["low"]).fillna(0)
    high = (group["high"] - group["median"]).fillna(0)
    return np.clip(np.array([low, high]) * factor, 0, None)


def _legend(ax: Axes) -> None:
    """Variants first, then what is drawn for all of them."""
    handles, labels = ax.get_legend_handles_labels()
    common = {"prediction", "out of memory", "timeout", "error"}
    order = sorted(range(len(labels)), key=lambda i: labels[i] in common or labels[i][0] == "±")
    ax.legend([handles[i] for i in order], [labels[i] for i in order])


def _ticks_at(ax: Axes, values: pd.Series) -> None:
    """A logarithmic x axis with ticks at the sizes that were run."""
    sizes = sorted(set(values.dropna()))
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    ax.minorticks_off()


def plain_ticks(axis: mpl.axis.Axis) -> None:
    """Plain numbers on a logarithmic axis: at 1, 2 and 5 of a decade; at 1 alone where there are
    many decades; evenly where there is less than one."""
    low, high = sorted(axis.get_view_interval())
    span = high / low if low > 0 else 1.0
    subs = (1.0,) if span > 1000 else (1.0, 2.0, 5.0)
    locator = mpl.ticker.LogLocator(subs=subs) if span > 8 else mpl.ticker.MaxNLocator(5)
    axis.set_major_locator(locator)
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())
