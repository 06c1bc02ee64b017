"""How are outlier channels, formats by phase, and quality by migration drawn?

Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inferlab.errors import UserError
from inferlab.plot_style import INK, QUIET, STYLES, style_of
from inferlab.plots import plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = {"prefill": "prefill (TTFT)", "decode": "decode (TPOT)"}


def phase_speedups(axes: Sequence[Axes], phases: Mapping[str, Sequence[Mapping]]) -> None:
    """One panel a phase, one row a variant: speed-up over the baseline on a logarithmic axis.

    `phases` is "prefill" and "decode" -> rows with `variant`, `median`, `low`, `high` and
    `predicted` (NaN: no prediction). A dot with its interval is measured, a bar is predicted.
    """
    if not phases or not any(len(rows) for rows in phases.values()):
        raise UserError("there is no speed-up to draw")
    order = {name: rank for rank, name in enumerate(STYLES)}
    found = {str(row["variant"]) for rows in phases.values() for row in rows}
    variants = sorted(found, key=lambda name: order.get(name, len(order)))
    for ax, (phase, rows) in zip(axes, phases.items(), strict=True):
        for row in rows:
            y, style = variants.index(str(row["variant"])), style_of(str(row["variant"]))
            ends = np.nan_to_num([[row["median"] - row["low"]], [row["high"] - row["median"]]])
            ax.errorbar(row["median"], y, xerr=np.clip(ends, 0, None), fmt=style.marker,
                        color=style.color, mec="white", ms=9, capsize=0)  # fmt: skip
            if np.isfinite(row["predicted"]):
                ax.plot(row["predicted"], y, "|", color=INK, ms=15, mew=1.8)
        ax.plot([], [], "|", color=INK, ms=12, mew=1.8, ls="", label="prediction")
        ax.axvline(1, color=QUIET, ls=":")
        ax.set(xscale="log", xlabel="speed-up, log scale", title=PHASES.get(phase, phase))
        ax.set_yticks(range(len(variants)), variants)
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        plain_ticks(ax.xaxis)
    axes[0].legend(loc="lower left")


def ranges_by_rank(ax: Axes, ranges: Mapping[str, Mapping[int, float]]) -> None:
    """Range of a channel over the median channel's, by rank (1: the largest), both axes log.

    `ranges` is copy of the model -> rank -> ratio. A flat line has no outliers.
    """
    for place, (kind, by_rank) in enumerate(ranges.items()):
        style = style_of(kind)
        ranks = sorted(by_rank)
        ax.plot(ranks, [by_rank[rank] for rank in ranks], marker=style.marker, color=style.color,
                ls=style.linestyle, mec="white", label=kind, **_below(place))  # fmt: skip
    ax.axhline(1, color=QUIET, ls=":")
    ax.set(xscale="log", yscale="log", xlabel="channels by range, largest first, log scale",
           ylabel="range / median channel, log scale")  # fmt: skip
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    ax.legend()


def outliers_by_layer(ax: Axes, table: pd.DataFrame) -> None:
    """Largest channel over the median one, by layer, one line a copy of the model.

    `table` has the columns `kind`, `layer` and `median` (the ratio).
    """
    for place, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        style, rows = style_of(str(kind)), rows.sort_values("layer")
        ax.plot(rows["layer"], rows["median"], marker=style.marker, color=style.color,
                ls=style.linestyle, mec="white", label=kind, **_below(place))  # fmt: skip
    ax.set(yscale="log", xlabel="layer", ylabel="largest / median channel, log scale")
    plain_ticks(ax.yaxis)
    ax.legend()


def quality_by_alpha(
    ax: Axes, table: pd.DataFrame, level: tuple[str, float] | None = None, by: str = "kind"
) -> None:
    """Mean KL divergence over SmoothQuant's alpha, one line a group; `level` is another variant's.

    `table` has the columns `alpha`, `median` (the divergence in nats) and `by`.
    """
    for kind, rows in table.groupby(by, sort=False):
        style, rows = style_of(str(kind)), rows.sort_values("alpha")
        ax.plot(rows["alpha"], rows["median"], marker=style.marker, color=style.color,
                ls=style.linestyle, mec="white", label=kind)  # fmt: skip
    if level:
        name, value = level
        ax.axhline(value, color=style_of(name).color, ls="--", label=name)
    ax.set(yscale="log", xlabel="α: share of the range that weights take over",
           ylabel="mean KL divergence (nats), log scale")  # fmt: skip
    plain_ticks(ax.yaxis)
    ax.legend()


def _below(place: int) -> dict[str, float]:
    """Line and marker of the copy drawn at `place`: wider below, so that equal lines both show."""
    return {"lw": max(1.2, 4.0 - 1.2 * place), "ms": max(4.0, 9.0 - 2.0 * place)}
