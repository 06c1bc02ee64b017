"""How are batches drawn: the frontier and its knee, waits by load, the parts of a latency?

Chapter: chapters/40_batching.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inferlab.errors import UserError
from inferlab.plot_style import INK, QUIET, style_of
from inferlab.plots import plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = {"wait_s": ("wait in line", 0.35), "prefill_s": ("prefill of the batch", 0.65),
         "steps_s": ("steps", 1.0)}  # fmt: skip


def frontier(ax: Axes, rows: Sequence[Mapping], knee: float | None = None) -> None:
    """Decode throughput over TPOT, a point a batch size; prediction dashed, the knee as a ring.

    `rows` as from `batching.tables.frontier_rows`.
    """
    _check(rows, "a frontier")
    style = style_of("measured")
    tpot_ms = np.array([row["tpot_s"] for row in rows]) * 1e3
    rate = np.array([row["step_tok_per_s"] for row in rows])
    expected_ms = np.array([row["predicted_tpot_s"] for row in rows]) * 1e3
    expected = np.array([row["predicted_step_tok_per_s"] for row in rows])
    ax.plot(expected_ms, expected, "--", lw=1.3, color=QUIET, label="prediction")
    ax.plot(tpot_ms, rate, marker=style.marker, color=style.color, mec="white", label="measured")
    for row, x, y in zip(rows, tpot_ms, rate, strict=True):
        ax.annotate(f"{row['batch_size']}", (x, y), xytext=(6, -11), textcoords="offset points",
                    fontsize=10, color=INK)  # fmt: skip
    if knee is not None and math.isfinite(knee):
        sizes = [row["batch_size"] for row in rows]
        at = np.interp(knee, sizes, tpot_ms)
        ax.plot(at, knee / at * 1e3, "o", ms=15, mfc="none", mec=INK, mew=1.4, ls="",
                label=f"knee, {knee:.0f} sequences")  # fmt: skip
    ax.set(xlabel="TPOT (ms), batch sizes at the points", ylabel="decode throughput (tok/s)",
           xlim=(0, None), ylim=(0, None))  # fmt: skip
    ax.legend(loc="lower right")


def waits_by_load(ax: Axes, loads: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    """Mean wait in services of one request, a line a policy; where it ends there is no mean."""
    if not curves:
        raise UserError("a figure of waits needs at least one policy")
    for policy, values in curves.items():
        style, shown = style_of(policy), np.array(values, dtype=float)
        shown[~np.isfinite(shown)] = np.nan
        ax.plot(loads, shown, style.linestyle, color=style.color, lw=2, label=policy)
    ax.axvline(1, color=QUIET, ls=":", lw=1.2)
    ax.set(xlabel="load (1: all that one at a time can serve)", ylim=(0, 6), xlim=(0, None),
           ylabel="mean wait (services of one request)")  # fmt: skip
    ax.legend(loc="upper center")


def waits(ax: Axes, rows: Sequence[Mapping], load: float) -> None:
    """Mean waits at one load by policy: theory as a line, the range of short runs as a bar,
    the emulated run as a cross, the measured one as its policy's marker; logarithmic.

    `rows` as from `batching.tables.wait_rows`.
    """
    own = [row for row in rows if row["load"] == load and row["lengths"] == "equal"]
    _check(own, "a figure of waits")
    found = [row[key] for row in own for key in ("theory_s", "emulated_s", "measured_s")]
    least_ms = max(0.3 * min((value for value in found if value > 0), default=1.0) * 1e3, 0.1)
    for place, row in enumerate(own):
        style = style_of(row["policy"])
        labels = _labels(place, "mean of runs this short", "theory", "emulated", "measured")
        low, high = (max(row[key] * 1e3, least_ms) for key in ("low_s", "high_s"))
        ax.plot([place, place], [low, high], lw=9, color=QUIET, alpha=0.35, solid_capstyle="butt",
                label=next(labels))  # fmt: skip
        ax.plot([place - 0.3, place + 0.3], [row["theory_s"] * 1e3] * 2, "--", lw=1.5, color=INK,
                label=next(labels))  # fmt: skip
        ax.plot(place, row["emulated_s"] * 1e3, "x", ms=9, mew=2, color=INK, label=next(labels))
        ax.plot(place, row["measured_s"] * 1e3, style.marker, ms=9, color=style.color,
                mec="white", ls="", label=next(labels))  # fmt: skip
    ax.set_xticks(range(len(own)), [row["policy"] for row in own])
    ax.set(ylabel="mean wait (ms), log scale", title=f"load {load:g}", yscale="log",
           xlim=(-0.6, len(own) - 0.4), ylim=(least_ms, None))  # fmt: skip
    plain_ticks(ax.yaxis)


def parts(ax: Axes, rows: Sequence[Mapping], load: float) -> None:
    """E2E latency at one load by policy, stacked: wait, prefill of the batch, steps.

    `rows` as from `batching.tables.part_rows`.
    """
    own = [row for row in rows if row["load"] == load]
    _check(own, "a figure of latencies")
    for place, row in enumerate(own):
        labels, bottom = _labels(place, *(title for title, _ in PARTS.values())), 0.0
        for key, (_, shade) in PARTS.items():
            height = row[key] * 1e3
            ax.bar(place, height, 0.6, bottom, color=style_of(row["policy"]).color, alpha=shade,
                   edgecolor="white", label=next(labels))  # fmt: skip
            bottom += height
    ax.set_xticks(range(len(own)), [row["policy"] for row in own])
    ax.set(ylabel="mean latency (ms)", title=f"load {load:g}")


def _labels(place: int, *names: str):
    """Labels for the legend: of the first place only."""
    return iter(names if not place else [None] * len(names))


def _check(rows: Sequence[Mapping], what: str) -> None:
    if not rows:
        raise UserError(f"{what} needs at least one measured case")
