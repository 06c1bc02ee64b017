"""How are speed-ups of low-bit weights, and what they cost in quality, drawn?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from inferlab.errors import UserError
from inferlab.plot_style import INK, QUIET, axis_unit, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def speedup_by_batch(ax: Axes, rows: pd.DataFrame) -> None:
    """Speed-up over the plain dtype by batch size, one line a variant; dashed: predicted.

    `rows` has variant, batch_size, median, low, high, predicted. Above the dotted line a variant is
    faster, below it slower.
    """
    _need(rows, "variant", "batch_size", "median", "low", "high", "predicted")
    for variant, group in rows.groupby("variant", sort=False):
        style, group = style_of(str(variant)), group.sort_values("batch_size")
        ends = [group["median"] - group["low"], group["high"] - group["median"]]
        ax.errorbar(
            group["batch_size"], group["median"], yerr=[e.fillna(0).clip(lower=0) for e in ends],
            marker=style.marker, color=style.color, ls=style.linestyle, mec="white", capsize=0,
            label=str(variant),
        )  # fmt: skip
        known = group.dropna(subset="predicted")
        ax.plot(known["batch_size"], known["predicted"], ls=":", lw=1.6, color=style.color)
    ax.plot([], [], ls=":", lw=1.6, color=QUIET, label="prediction")
    ax.axhline(1, color=INK, lw=1)
    sizes = sorted(set(rows["batch_size"]))
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    ax.minorticks_off()
    ax.set(xlabel="batch size, log scale", ylabel="speed-up over bfloat16", ylim=(0, None))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=11)


def loss_by_format(
    ax: Axes, table: pd.DataFrame, metric: str = "kld_mean_nats", by: str = "copy"
) -> None:
    """A loss of quality by format, one mark for each of `by`, on a logarithmic axis.

    `table` is `record.table(metric)` with the columns format and `by`; formats in their order.
    """
    _need(table, "format", "median", by)
    formats = list(dict.fromkeys(table["format"]))
    _, label = axis_unit(metric, table["median"])
    for name, group in table.groupby(by, sort=False):
        style = style_of(str(name))
        ax.plot(
            group["median"], [formats.index(f) for f in group["format"]], style.marker,
            color=style.color, mec="white", ms=9, label=str(name),
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yticks(range(len(formats)), formats)
    ax.set_ylim(len(formats) - 0.5, -0.5)
    ax.set_xlabel(f"{label}, log scale")
    ax.legend()


def quality_against_time(ax: Axes, points: pd.DataFrame) -> None:
    """Quality lost against time saved: one line a configuration, one mark a batch size.

    `points` has name, style, batch_size, speedup and loss (mean KL divergence). Down and right is
    better; left of the line at 1 a configuration saves no time at all.
    """
    _need(points, "name", "style", "batch_size", "speedup", "loss")
    for (name, look), group in points.groupby(["name", "style"], sort=False):
        style, group = style_of(str(look)), group.sort_values("batch_size")
        ax.plot(group["speedup"], group["loss"], color=style.color, lw=1.2, alpha=0.7)
        ax.scatter(
            group["speedup"], group["loss"], marker=style.marker, color=style.color, zorder=3,
            ec="white", s=70, label=str(name),
        )  # fmt: skip
        for row in group.itertuples():
            ax.annotate(
                f"{row.batch_size}", (row.speedup, row.loss), xytext=(0, 6),
                textcoords="offset points", ha="center", fontsize=10, color=INK,
            )  # fmt: skip
    ax.axvline(1, color=INK, lw=1)
    ax.set_yscale("log")
    ax.set(
        xlabel="speed-up over bfloat16 (marks: batch size)",
        ylabel="mean KL divergence (nats), log scale", xlim=(0, None),
    )  # fmt: skip
    ax.margins(y=0.12)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=11)


def _need(table: pd.DataFrame, *columns: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        what = f"no column {missing[0]!r}" if missing else "no rows"
        raise UserError(f"the table has {what}: give one with {', '.join(columns)}")
