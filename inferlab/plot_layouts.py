"""How are layouts of keys and values drawn: attention's share, throughput, quality by bytes?

Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inferlab.errors import UserError
from inferlab.plot_style import INK, QUIET, axis_unit, style_of
from inferlab.plots import plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def share_by_context(ax: Axes, rows: pd.DataFrame) -> None:
    """Attention's share of a step by context, one line a family; dashed: predicted.

    `rows` has family, context_len, share and predicted, 0 to 1 each.
    """
    _need(rows, "family", "context_len", "share", "predicted")
    for family, group in rows.groupby("family", sort=False):
        style, group = style_of(str(family)), group.sort_values("context_len")
        ax.plot(group["context_len"], group["share"], marker=style.marker, color=style.color,
                ls=style.linestyle, mec="white", label=str(family))  # fmt: skip
        ax.plot(group["context_len"], group["predicted"], ls=":", lw=1.6, color=style.color)
    ax.plot([], [], ls=":", lw=1.6, color=QUIET, label="prediction")
    sizes = sorted(set(rows["context_len"]))
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    ax.minorticks_off()
    ax.set(xlabel="context (tokens), log scale", ylabel="attention's share of a step", ylim=(0, 1))
    ax.legend(fontsize=11)


def throughput_by_bytes(ax: Axes, table: pd.DataFrame) -> None:
    """Throughput at the largest batch over the bytes a token keeps; bars: what was predicted.

    `table` has family, layout, batch_size, token_bytes, median, low, high and predicted.
    """
    _need(table, "family", "token_bytes", "batch_size", "median", "low", "high", "predicted")
    scale, label = axis_unit("kv_bytes", table["token_bytes"])
    for row in table.itertuples():
        style = style_of(str(row.family))
        ends = np.clip(np.nan_to_num([[row.median - row.low], [row.high - row.median]]), 0, None)
        x = row.token_bytes * scale
        ax.errorbar(x, row.median, yerr=ends, fmt=style.marker, color=style.color, mec="white",
                    ms=9, label=f"{row.layout}: {row.batch_size} sequences")  # fmt: skip
        ax.plot(x, row.predicted, "_", color=style.color, ms=18, mew=2.2)
    ax.plot([], [], "_", color=INK, ms=12, mew=1.8, ls="", label="prediction")
    ax.set(xscale="log", xlabel=f"{label} of a token, log scale", ylim=(0, None),
           ylabel="output throughput (tok/s)")  # fmt: skip
    plain_ticks(ax.xaxis)
    ax.legend(fontsize=11)


def quality_by_bytes(ax: Axes, table: pd.DataFrame, training: str = "fine-tuned") -> None:
    """Mean KL divergence over the bytes a token keeps; rings mark rows that were trained.

    `table` has family, layout, training, kv_bytes_per_token and median (nats); rows of less than
    1e-6 nats are drawn there: a logarithmic axis has no zero.
    """
    _need(table, "family", "training", "kv_bytes_per_token", "median")
    scale, label = axis_unit("kv_bytes", table["kv_bytes_per_token"])
    drawn = table.assign(x=table["kv_bytes_per_token"] * scale, y=table["median"].clip(lower=1e-6))
    for family, group in drawn.groupby("family", sort=False):
        style = style_of(str(family))
        plain = group[group["training"] != training].sort_values("x")
        ax.plot(plain["x"], plain["y"], marker=style.marker, color=style.color, ls=style.linestyle,
                mec="white", ms=9, label=str(family))  # fmt: skip
        tuned = group[group["training"] == training]
        if len(tuned):
            ax.plot(tuned["x"], tuned["y"], style.marker, mfc="none", mec=style.color, mew=2, ms=11,
                    label=f"{family}, {training}")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel=f"{label} of a token, log scale",
           ylabel="mean KL divergence (nats), log scale")  # fmt: skip
    plain_ticks(ax.xaxis)
    ax.legend(fontsize=11)


def _need(table: pd.DataFrame, *columns: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        what = f"no column {missing[0]!r}" if missing else "no rows"
        raise UserError(f"the table has {what}: give one with {', '.join(columns)}")
