"""How are the ladder of a step, its time by size of model, and the cost of compiling drawn?

Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inferlab.errors import UserError
from inferlab.plot_style import INK, QUIET, axis_unit, style_of
from inferlab.plots import plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def ladder(ax: Axes, table: pd.DataFrame, floor_s: float, metric: str = "tpot_s") -> None:
    """One row a rung, from the baseline down: measured with its interval, predicted as a bar.

    `table` has `rung`, `median`, `low`, `high` and `predicted`, in the order of the ladder. The
    solid line is the floor, below which no step can be.
    """
    rows = table.dropna(subset=["median"])
    if rows.empty:
        raise UserError("there is no rung to draw")
    factor, label = axis_unit(metric, rows["median"])
    for y, row in enumerate(rows.itertuples()):
        style = style_of(row.rung)
        ends = np.nan_to_num([[row.median - row.low], [row.high - row.median]]) * factor
        ax.errorbar(row.median * factor, y, xerr=np.clip(ends, 0, None), fmt=style.marker,
                    color=style.color, mec="white", ms=10, capsize=0)  # fmt: skip
        if np.isfinite(row.predicted):
            ax.plot(row.predicted * factor, y, "|", color=INK, ms=16, mew=1.8)
    ax.plot([], [], "|", color=INK, ms=12, mew=1.8, ls="", label="prediction")
    ax.axvline(floor_s * factor, color=QUIET, lw=1.6, label="floor")
    ax.set_yticks(range(len(rows)), rows["rung"])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(label)
    ax.legend(loc="lower right")


def by_size(
    ax: Axes, table: pd.DataFrame, turning_bytes: float | None = None, metric: str = "step_s"
) -> None:
    """Step time over the bytes that a step reads, one line a rung, both axes logarithmic.

    `table` has `rung`, `read_bytes`, `median`, `low`, `high`, `predicted` and `floor_s`. The solid
    grey line is the floor; a dotted one marks the size at which the floor is half of the step.
    """
    rows = table.dropna(subset=["read_bytes", "median"])
    if rows.empty:
        raise UserError("there is no size to draw")
    factor, label = axis_unit(metric, rows["median"])
    for rung, group in rows.groupby("rung", sort=False):
        group, style = group.sort_values("read_bytes"), style_of(str(rung))
        errors = np.array([group["median"] - group["low"], group["high"] - group["median"]])
        ax.errorbar(group["read_bytes"] / 1e6, group["median"] * factor, color=style.color,
                    yerr=np.clip(np.nan_to_num(errors) * factor, 0, None), marker=style.marker,
                    mec="white", capsize=0, label=str(rung))  # fmt: skip
        ax.plot(group["read_bytes"] / 1e6, group["predicted"] * factor, "--", lw=1.3, alpha=0.8,
                color=style.color)  # fmt: skip
    floors = rows.drop_duplicates("read_bytes").sort_values("read_bytes")
    ax.plot(floors["read_bytes"] / 1e6, floors["floor_s"] * factor, color=QUIET, lw=1.6,
            label="floor")  # fmt: skip
    ax.plot([], [], "--", lw=1.3, color=QUIET, label="prediction")
    if turning_bytes and math.isfinite(turning_bytes):
        ax.axvline(turning_bytes / 1e6, color=INK, lw=1.3, ls=":", label="floor is half a step")
    ax.set(xscale="log", yscale="log", xlabel="bytes read a step (MB), log scale",
           ylabel=f"{label}, log scale")  # fmt: skip
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    ax.legend()


def breakeven(ax: Axes, ways: Mapping[str, tuple[float, float]], most_tokens: int) -> None:
    """Seconds until the n-th token by n: `ways` is rung -> (seconds once, seconds a token)."""
    if not ways or most_tokens < 2:
        raise UserError("a comparison needs at least one way and two tokens")
    tokens = np.geomspace(1, most_tokens, 80)
    for rung, (once_s, step_s) in ways.items():
        style = style_of(rung)
        ax.plot(tokens, once_s + tokens * step_s, color=style.color, ls=style.linestyle, label=rung)
    ax.set(xscale="log", yscale="log", xlabel="tokens written, log scale",
           ylabel="compiling and writing (s), log scale")  # fmt: skip
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    ax.legend()
