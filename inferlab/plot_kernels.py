"""How are gains of fused operations, their times and their shares of the bandwidth drawn, by size?

Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inferlab.errors import UserError
from inferlab.plot_style import INK, QUIET, STYLES, axis_unit, style_of
from inferlab.plots import plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET_SHARE = 0.85  # of the measured bandwidth, beyond the caches of a GPU


def gain_by_size(ax: Axes, rows: pd.DataFrame, size: str = "rows") -> None:
    """Time of separate operators over that of each variant by size, both axes logarithmic.

    `rows` has variant, size, median, low, high and predicted (dotted). Above the line at 1 the
    variant is faster. `size` names the axis.
    """
    _need(rows, "variant", "size", "median", "low", "high", "predicted")
    for variant, group in _groups(rows):
        style = style_of(variant)
        _points(ax, group, variant)
        known = group.dropna(subset="predicted")
        ax.plot(known["size"], known["predicted"], ls=":", lw=1.6, color=style.color)
    if rows["predicted"].notna().any():
        ax.plot([], [], ls=":", lw=1.6, color=QUIET, label="prediction")
    ax.axhline(1, color=INK, lw=1)
    _axes(ax, size, "gain over separate operators, log scale")


def time_by_size(ax: Axes, rows: pd.DataFrame, size: str = "rows", metric: str = "time_s") -> None:
    """Time of each variant by size, both axes logarithmic; dotted: predicted.

    `rows` has variant, size, median, low, high and predicted, in seconds.
    """
    _need(rows, "variant", "size", "median", "low", "high", "predicted")
    factor, label = axis_unit(metric, rows["median"])
    scaled = rows.assign(**{c: rows[c] * factor for c in ("median", "low", "high", "predicted")})
    for variant, group in _groups(scaled):
        _points(ax, group, variant)
        known = group.dropna(subset="predicted")
        ax.plot(known["size"], known["predicted"], ls=":", lw=1.6, color=style_of(variant).color)
    ax.plot([], [], ls=":", lw=1.6, color=QUIET, label="prediction")
    _axes(ax, size, f"{label}, log scale")


def share_by_bytes(ax: Axes, rows: pd.DataFrame, target: float | None = TARGET_SHARE) -> None:
    """Share of the measured bandwidth by the bytes that must move, one line a variant.

    `rows` has variant, least_bytes, median, low and high. `target` is drawn as a level.
    """
    _need(rows, "variant", "least_bytes", "median", "low", "high")
    sizes = rows.assign(size=rows["least_bytes"] / 1e6)
    for variant, group in _groups(sizes):
        _points(ax, group, variant)
    if target is not None:
        ax.axhline(target, color=INK, lw=1, ls="--", label=f"target {target:.2f}")
    ax.set(xscale="log", xlabel="bytes that must move (MB), log scale",
           ylabel="share of the measured bandwidth")  # fmt: skip
    ax.set_ylim(0, None)
    plain_ticks(ax.xaxis)
    ax.legend()


def _points(ax: Axes, group: pd.DataFrame, variant: str) -> None:
    """Measured medians with their intervals, in the variant's look."""
    style = style_of(variant)
    ends = np.nan_to_num([group["median"] - group["low"], group["high"] - group["median"]])
    ax.errorbar(
        group["size"], group["median"], yerr=np.clip(ends, 0, None), marker=style.marker,
        color=style.color, ls=style.linestyle, mec="white", capsize=0, label=variant,
    )  # fmt: skip


def _groups(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each variant by size, variants in the book's order."""
    order = {name: rank for rank, name in enumerate(STYLES)}
    groups = [(str(name), group.sort_values("size")) for name, group in rows.groupby("variant")]
    return sorted(groups, key=lambda item: order.get(item[0], len(order)))


def _axes(ax: Axes, size: str, label: str) -> None:
    ax.set(xscale="log", yscale="log", xlabel=f"{size}, log scale", ylabel=label)
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    ax.legend()


def _need(rows: pd.DataFrame, *names: str) -> None:
    missing = [name for name in names if name not in rows]
    if missing:
        raise UserError(f"the table has no column {missing[0]!r}; it has {', '.join(rows.columns)}")
    if rows.empty:
        raise UserError("there is nothing to draw: the table has no rows")
