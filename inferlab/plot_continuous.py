"""How is a schedule drawn: who sits in which row, what it gains, and what a newcomer does?

Chapter: chapters/41_continuous_batching.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inferlab.errors import UserError
from inferlab.plot_style import INK, QUIET, axis_unit, style_of
from inferlab.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What each technique of the ladder looks like: the variant that it switches on.
LOOKS = {"scheduler": "continuous", "store": "paged", "kernels": "packed"}


def rows_over_time(
    ax: Axes, spans: Sequence[tuple[int, float, float]], policy: str, num_rows: int,
    until: float,
) -> None:  # fmt: skip
    """Who sits in which row of the batch: one bar an answer, from its entry to its last token.

    `spans` are (row, first step, end); what stays white in between is a row with nobody in it.
    """
    if not spans:
        raise UserError("a schedule needs at least one answer to draw")
    color = style_of(policy).color
    for row, start, end in spans:
        ax.barh(row, end - start, left=start, height=0.8, color=color, edgecolor="white")
    used = sum(end - start for _, start, end in spans)
    last = max(end for *_, end in spans)
    ax.set(xlim=(0, until), ylim=(num_rows - 0.5, -0.5), ylabel="row")
    ax.set_yticks(range(num_rows), [str(row + 1) for row in range(num_rows)])
    ax.set_title(f"{policy}: {last:.0f} steps, {used / last / num_rows:.0%} of the rows in use")
    ax.grid(axis="y", visible=False)


def gain_by_spread(
    ax: Axes, gains: Mapping[str, Sequence[tuple[float, Estimate, float | None]]],
    limits: Sequence[tuple[float, float]],
) -> None:  # fmt: skip
    """Throughput over static batches by the spread of the answers.

    `gains[variant]` holds (cv, measured ratio, emulated ratio or None); `limits` (cv, longest over
    mean) is what could be won if a step took as long for one row as for all.
    """
    if not gains or not all(gains.values()):
        raise UserError("a figure of gains needs a mix that both policies served")
    for variant, points in gains.items():
        style = style_of(variant)
        cvs = [cv for cv, *_ in points]
        values = np.array([found.value for _, found, _ in points])
        ends = np.array([[found.low, found.high] for _, found, _ in points])
        errors = np.clip(np.nan_to_num(np.abs(ends - values[:, None])).T, 0, None)
        ax.errorbar(cvs, values, yerr=errors, marker=style.marker, color=style.color, capsize=0,
                    ls=style.linestyle, mec="white", label=variant)  # fmt: skip
        expected = [(cv, value) for cv, _, value in points if value is not None]
        if expected:
            ax.plot(*zip(*expected, strict=True), ls=(0, (1, 1)), lw=1.4, color=style.color)
    ax.plot(
        *zip(*limits, strict=True), "--", lw=1.3, color=QUIET, label="longest of a batch / mean"
    )
    ax.plot([], [], ls=(0, (1, 1)), lw=1.4, color=QUIET, label="emulated schedule")
    ax.axhline(1, color=QUIET, lw=1)
    ax.set(
        xlabel="standard deviation of the answers / mean",
        ylabel="output over static batches",
        ylim=(0, 1.15 * max(limit for _, limit in limits)),
    )
    ax.legend(loc="upper left")


def orders(ax: Axes, by_order: Mapping[Sequence[str], Mapping[str, float]], whole: float) -> None:
    """One bar an order of switching on, its factors end to end on a logarithmic axis."""
    if not by_order:
        raise UserError("no order of techniques to draw")
    lowest = 1.0
    for place, (order, factors) in enumerate(by_order.items()):
        at = 1.0
        for technique in order:
            factor = factors[technique]
            look = style_of(LOOKS[technique])
            ax.barh(place, at * factor - at, left=at, height=0.7, color=look.color,
                    edgecolor="white", label=technique if not place else None)  # fmt: skip
            ax.text(at * factor**0.5, place, f"{factor:.2f}", ha="center", va="center",
                    color=INK, fontsize=11)  # fmt: skip
            at *= factor
            lowest = min(lowest, 0.9 * at)  # one that slows down leads to the left
    ax.axvline(whole, color=INK, ls="--", lw=1.3, label="all three")
    ends = [lowest, whole * 1.25]
    ax.set(xscale="log", xlim=ends, xlabel="output over the cell with none, log scale")
    ticks = [t for t in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24) if t <= ends[1]]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(by_order)), [", ".join(order) for order in by_order])
    ax.invert_yaxis()
    ax.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=2)


def frontier(
    ax: Axes, points: Mapping[str, Sequence[tuple[float, float, int]]], budget_s: float | None
) -> None:
    """Output throughput over p95 TPOT, one line a policy, one point a batch size (written at it).

    `points[policy]` are (p95 TPOT in s, tok/s, sequences); `budget_s` is drawn as a limit.
    """
    every = [point for own in points.values() for point in own]
    if not every:
        raise UserError("a frontier needs at least one run")
    factor, label = axis_unit("tpot_s", [tpot for tpot, *_ in every])
    for policy, own in points.items():
        style = style_of(policy)
        own = sorted(own, key=lambda point: point[2])
        ax.plot([p[0] * factor for p in own], [p[1] for p in own], marker=style.marker,
                color=style.color, mec="white", label=policy)  # fmt: skip
        for tpot_s, rate, rows in own:
            ax.annotate(str(rows), (tpot_s * factor, rate), xytext=(6, -12), fontsize=11,
                        textcoords="offset points", color=INK)  # fmt: skip
    if budget_s is not None:
        ax.axvline(budget_s * factor, color=QUIET, ls="--", lw=1.3, label="budget")
    ax.set(xlabel=f"p95 {label}", ylabel="output throughput (tok/s)", ylim=(0, None))
    ax.set_xlim(left=0)
    ax.legend(loc="lower right")


def by_chunk(
    ax: Axes, rows: Sequence[tuple[int, Estimate, float]], middle_s: float, label: str
) -> None:
    """A gap of the running answers by chunk size: measured, predicted, and the median gap.

    `rows` are (chunk size, measured, predicted); chunk size 0, the whole prompt at once, stands at
    the right end.
    """
    if not rows:
        raise UserError("no chunk size to draw")
    rows = sorted(rows, key=lambda row: row[0] or float("inf"))
    factor, _ = axis_unit("itl_s", [found.value for _, found, _ in rows])
    unit = "ms" if factor == 1e3 else "s" if factor == 1 else "µs"
    places = range(len(rows))
    values = np.array([found.value for _, found, _ in rows]) * factor
    ends = np.array([[found.low, found.high] for _, found, _ in rows]) * factor
    errors = np.clip(np.nan_to_num(np.abs(ends - values[:, None])).T, 0, None)
    style = style_of("continuous")
    ax.errorbar(places, values, yerr=errors, marker=style.marker, color=style.color, mec="white",
                capsize=0, label="measured")  # fmt: skip
    ax.plot(places, [expected * factor for *_, expected in rows], "--", lw=1.3, color=QUIET,
            label="prediction")  # fmt: skip
    ax.axhline(middle_s * factor, color=QUIET, ls=":", lw=1.3, label="median gap")
    ax.set(xlabel="chunk (tokens)", ylabel=f"{label} ({unit}), log scale", yscale="log")
    ax.set_xticks(places, [str(size) if size else "whole" for size, *_ in rows])
    ax.legend()
