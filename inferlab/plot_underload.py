"""How is a server under load drawn: by rate, by percentile of samples, the client's own errors?

Chapter: chapters/46_serving_under_load.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inferlab.errors import UserError
from inferlab.plot_style import GREY, INK, QUIET, axis_unit, style_of
from inferlab.plots import plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATE = "offered rate (requests/s)"
MEDIAN_BOUND_S, P99_BOUND_S = 1e-3, 2e-3  # what the client promises


def by_rate(
    ax: Axes, table: pd.DataFrame, metric: str, label: str, capacity_req_per_s: float,
    limit: float | None = None,
) -> None:  # fmt: skip
    """A metric over the offered rate: measured points, expectation dashed, capacity upright.

    `table` is `record.table(metric)`; its cases with the parameters `phase` "sweep" and
    `rate_req_per_s` are drawn. Times have a logarithmic axis; `limit` is drawn level.
    """
    rows = table[table["phase"] == "sweep"] if "phase" in table else table.iloc[:0]
    rows = rows.dropna(subset=["median"])
    if rows.empty:
        raise UserError("the record has no sweep of rates to draw")
    rows = rows.sort_values("rate_req_per_s")
    is_time = metric.endswith("_s") and not metric.endswith("_per_s")
    factor, unit = axis_unit("time_s", rows["median"]) if is_time else (1.0, "")
    style = style_of("measured")
    ax.plot(rows["rate_req_per_s"], rows["median"] * factor, marker=style.marker,
            color=style.color, mec="white", label="measured")  # fmt: skip
    ax.plot(rows["rate_req_per_s"], rows["predicted"] * factor, "--", color=INK, lw=1.4,
            label="emulated")  # fmt: skip
    ax.axvline(capacity_req_per_s, color=QUIET, lw=1.2, ls=":", label="predicted capacity")
    if limit is not None:
        ax.axhline(limit * factor, color=style_of("none").color, lw=1.2, label="limit")
    ax.set(xlabel=RATE, ylabel=label, xlim=(0, None))
    if is_time:
        ax.set_yscale("log")
        ax.set_ylabel(f"{label} {unit.partition(' ')[2]}, log scale")
        plain_ticks(ax.yaxis)
    else:
        ax.set_ylim(0, None)
    ax.legend()


def scatter_of_percentile(ax: Axes, table: pd.DataFrame, q: float, metric: str = "ttft_s") -> None:
    """Where the q-th percentile of n requests lies in 95 of 100 samples; `tables.subsamples`."""
    if table.empty:
        raise UserError("no sample sizes to draw")
    factor, label = axis_unit(metric, table["value"])
    style = style_of("measured")
    ax.vlines(table["n"], table["low"] * factor, table["high"] * factor, color=style.color, lw=7,
              label="samples of the run")  # fmt: skip
    for end, name in (("low*", "by the binomial distribution"), ("high*", None)):
        ax.plot(table["n"], table[end] * factor, "--", color=INK, lw=1.3, label=name)
    ax.axhline(table["value"].iloc[0] * factor, color=QUIET, lw=1, label=f"p{q:g} of the whole run")
    ax.set(xscale="log", yscale="log", xlabel="requests, log scale",
           ylabel=f"p{q:g} of {label}, log scale")  # fmt: skip
    ax.set_xticks(table["n"], [f"{n:,}" for n in table["n"]])
    ax.minorticks_off()
    plain_ticks(ax.yaxis)
    ax.legend()


def client_errors(ax: Axes, errors: Mapping[str, Sequence[tuple[int, float, float]]]) -> None:
    """Median and tail of the client's error by number of streams, a colour a quantity.

    `errors[quantity]` holds (streams, median, tail) in seconds; the two bounds are level lines.
    """
    if not any(errors.values()):
        raise UserError("the record has no calibration of the client to draw")
    for (name, rows), look in zip(errors.items(), ("measured", "hf"), strict=False):
        style = style_of(look)
        streams, medians, tails = (np.array(column) for column in zip(*rows, strict=True))
        ax.plot(streams, tails * 1e3, marker=style.marker, color=style.color, mec="white",
                label=f"{name}, tail")  # fmt: skip
        ax.plot(streams, medians * 1e3, marker=style.marker, color=style.color, mec="white",
                ls=":", label=f"{name}, median")  # fmt: skip
    for bound_s, where in ((MEDIAN_BOUND_S, "bound of the median"), (P99_BOUND_S, "bound of p99")):
        ax.axhline(bound_s * 1e3, color=GREY, lw=1)
        ax.annotate(where, (1, bound_s * 1e3), xycoords=("axes fraction", "data"), ha="right",
                    va="bottom", fontsize=10, color=INK)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="streams at once, log scale",
           ylabel="error (ms), log scale", ylim=(None, 30 * P99_BOUND_S * 1e3))  # fmt: skip
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    ax.legend(fontsize=10, ncol=2, loc="upper center")  # above the bounds, where no error lies
