"""How are event logs, tools' readings, tails and percentiles drawn? Style and units of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inferlab.plot_style import GREY, INK, QUIET, axis_unit, style_of
from inferlab.stats import percentile_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Events = Sequence[tuple[float, int]]


def event_log(ax: Axes, logs: Mapping[str, Events]) -> None:
    """One row a request, one dot an event, larger for more tokens; a ring is an empty event.

    Times are in seconds since the request was sent.
    """
    last = max(time for events in logs.values() for time, _ in events)
    factor, label = axis_unit("time_s", [last])
    for row, events in enumerate(logs.values()):
        times = np.array([time for time, _ in events]) * factor
        tokens = np.array([count for _, count in events])
        ax.plot([0, times.max()], [row, row], color=GREY, lw=1, zorder=1)
        seen = tokens > 0
        ax.scatter(times[seen], np.full(seen.sum(), row), s=24 * tokens[seen], zorder=2,
                   color=style_of("torch").color)  # fmt: skip
        ax.scatter(times[~seen], np.full((~seen).sum(), row), s=64, fc="none", ec=INK, lw=1.5)
    ax.set_yticks(range(len(logs)), list(logs))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlabel=label.replace("time", "time since sent"), xlim=(0, None))


def tool_readings(ax: Axes, values: Mapping[str, Mapping[str, float]], metric: str) -> None:
    """One row a tool, one mark a log: what each tool reports for the same quantity.

    `values` is log -> ("tool: its word" -> value in SI units), in the order of the first log.
    """
    tools = list(next(iter(values.values())))
    numbers = [value for one in values.values() for value in one.values()]
    factor, label = axis_unit(metric, numbers)
    for log, one in values.items():
        style = style_of(log)
        rows = [tools.index(tool) for tool in one]
        ax.plot([v * factor for v in one.values()], rows, style.marker, color=style.color,
                mec="white", ms=9, label=log)  # fmt: skip
    ax.set_yticks(range(len(tools)), [tool.replace(": ", "\n") for tool in tools], fontsize=11)
    ax.set_ylim(len(tools) - 0.5, -0.5)
    ax.set(xlabel=label, xlim=(0, 1.08 * factor * max(numbers)))
    if len(values) > 1:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def tail(ax: Axes, samples: Mapping[str, Sequence[float]], metric: str, mean_of: str = "") -> None:
    """Share of requests that take longer than a value, both axes logarithmic.

    A horizontal line marks one request in a hundred, a dotted one the mean of `mean_of`.
    """
    factor, label = axis_unit(metric, np.concatenate([np.asarray(v) for v in samples.values()]))
    for name, values in samples.items():
        style, ordered = style_of(name), np.sort(np.asarray(values)) * factor
        share = 1 - np.arange(len(ordered)) / len(ordered)
        ax.step(ordered, share, where="post", color=style.color, ls=style.linestyle, label=name)
    ax.axhline(0.01, color=QUIET, lw=1)
    ax.annotate("1 in\n100", (1.01, 0.01), xycoords=("axes fraction", "data"), ha="left",
                va="center", fontsize=11, color=INK)  # fmt: skip
    if mean_of:
        ax.axvline(float(np.mean(samples[mean_of])) * factor, color=INK, lw=1.3, ls=":",
                   label=f"mean of {mean_of}")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel=f"{label}, log scale",
           ylabel="share that takes longer, log scale")  # fmt: skip
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3)


def percentile_bands(ax: Axes, sizes: Sequence[int], q: float = 99.0) -> None:
    """Which percentiles of a sample enclose the true `q`-th one in 95 of 100 samples, by size."""
    bands = [percentile_interval(n, q) for n in sizes]
    style = style_of("measured")
    for n, band in zip(sizes, bands, strict=True):
        ax.plot([n, n], [band.low_q, band.high_q], color=style.color, lw=6, solid_capstyle="butt")
    ax.axhline(q, color=INK, lw=1.3, ls="--", label=f"p{q:g}")
    ax.set_xscale("log")
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ax.minorticks_off()
    ax.set(xlabel="requests, log scale", ylabel="percentile of the sample", ylim=(None, 100.1))
    ax.legend(loc="lower right")


def spread_by_length(ax: Axes, table: pd.DataFrame, r_ratio: float, limit: float = 1.05) -> None:
    """Largest over smallest per-token value by answer length; dashed: 1 + r / (N - 1)."""
    lengths = np.geomspace(table["output_len"].min(), table["output_len"].max(), 60)
    style = style_of("measured")
    errors = np.array([table["median"] - table["low"], table["high"] - table["median"]])
    ax.errorbar(table["output_len"], table["median"], yerr=errors, fmt=style.marker,
                color=style.color, mec="white", label="measured")  # fmt: skip
    ax.plot(lengths, 1 + max(r_ratio, 1) / (lengths - 1), "--", color=INK, lw=1.3,
            label="prediction")  # fmt: skip
    ax.axhline(limit, color=QUIET, lw=1, label=f"agreement within {limit - 1:.0%}")
    ax.set(xscale="log", xlabel="output tokens, log scale", ylabel="largest / smallest")
    ax.set_xticks(table["output_len"], table["output_len"])
    ax.minorticks_off()
    ax.legend()
