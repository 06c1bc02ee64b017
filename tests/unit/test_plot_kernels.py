"""The figures of chapter 26: gains and times by size, shares of the bandwidth by bytes."""

import math

import matplotlib as mpl
import pandas as pd
import pytest

from inferlab import plot_kernels, plot_style
from inferlab.errors import UserError

mpl.use("Agg")


@pytest.fixture
def ax():
    plot_style.use_style()
    figure, ax = plot_style.plt.subplots()
    yield ax
    plot_style.plt.close(figure)


def rows(*variants):
    found = [
        {"variant": v, "size": size, "median": 1e-5 * size, "low": 0.9e-5 * size, "high": math.nan,
         "predicted": 2e-5 * size if v == "compile" else math.nan, "least_bytes": 2e6 * size}
        for v in variants for size in (16, 1)
    ]  # fmt: skip
    return pd.DataFrame(found)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_gains_are_drawn_by_size_with_predictions(ax):
    plot_kernels.gain_by_size(ax, rows("triton", "compile"))
    assert sorted(labels(ax)) == ["compile", "prediction", "triton"]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    dotted = [line for line in ax.lines if line.get_ls() == ":" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in dotted] == [[1, 16]]


def test_times_have_a_unit(ax):
    plot_kernels.time_by_size(ax, rows("eager", "library"), "context")
    assert ax.get_ylabel() == "time (µs), log scale" and ax.get_xlabel() == "context, log scale"


def test_shares_show_the_target(ax):
    plot_kernels.share_by_bytes(ax, rows("triton"))
    assert sorted(labels(ax)) == ["target 0.85", "triton"]
    assert list(ax.lines[0].get_xdata()) == [2.0, 32.0]


def test_what_cannot_be_drawn_is_refused(ax):
    with pytest.raises(UserError, match="no column 'predicted'"):
        plot_kernels.gain_by_size(ax, rows("compile").drop(columns="predicted"))
    with pytest.raises(UserError, match="no rows"):
        plot_kernels.time_by_size(ax, rows("compile").iloc[:0])
    with pytest.raises(UserError, match="no colour"):
        plot_kernels.share_by_bytes(ax, rows("cutlass"))
