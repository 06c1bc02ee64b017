"""The figures of chapter 27: rungs in order, the floor as a line, sizes on logarithmic axes."""

import math

import matplotlib as mpl
import pandas as pd
import pytest

from inferlab import plot_steps, plot_style
from inferlab.errors import UserError
from inferlab.stepbench import RUNGS

mpl.use("Agg")


@pytest.fixture
def ax():
    _, axes = plot_style.figure()
    yield axes
    plot_style.plt.close(axes.figure)


def rungs(*names):
    return pd.DataFrame(
        {"rung": name, "median": 0.01 / (i + 1), "low": 0.009 / (i + 1), "high": math.nan,
         "predicted": math.nan if i else 0.02}
        for i, name in enumerate(names)
    )  # fmt: skip


def test_every_rung_has_a_look_of_its_own():
    for ladder in RUNGS.values():
        styles = [plot_style.style_of(rung.name) for rung in ladder]
        looks = {(s.color, s.marker) for s in styles}
        assert len(looks) == len(ladder)


def test_the_ladder_goes_down_and_shows_its_floor(ax):
    plot_steps.ladder(ax, rungs("hf", "static", "compile"), 0.002)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["hf", "static", "compile"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_xlim()[0] == 0
    assert ax.get_xlabel() == "TPOT (ms)"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["prediction", "floor"]


def test_sizes_have_two_logarithmic_axes(ax):
    table = pd.DataFrame(
        {"rung": "packed", "read_bytes": 1e6 * 4**i, "median": 1e-3 + 1e-4 * 4**i, "low": 1e-3,
         "high": math.nan, "predicted": 1e-3, "floor_s": 1e-4 * 4**i}
        for i in range(4)
    )  # fmt: skip
    plot_steps.by_size(ax, table, 2e7)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_ylabel() == "step (ms), log scale"
    words = [t.get_text() for t in ax.get_legend().get_texts()]
    assert set(words) == {"packed", "floor", "prediction", "floor is half a step"}


def test_what_costs_once_starts_higher(ax):
    plot_steps.breakeven(ax, {"packed": (0, 0.013), "compile": (25, 0.011)}, 100_000)
    slow, fast = (line.get_ydata() for line in ax.get_lines()[:2])
    assert slow[0] < fast[0] and slow[-1] > fast[-1]


def test_nothing_to_draw_is_refused(ax):
    with pytest.raises(UserError, match="no rung"):
        plot_steps.ladder(ax, rungs("hf").assign(median=math.nan), 1.0)
    empty = pd.DataFrame({"read_bytes": [math.nan], "median": [1.0]})
    with pytest.raises(UserError, match="no size"):
        plot_steps.by_size(ax, empty)
    with pytest.raises(UserError, match="at least one way"):
        plot_steps.breakeven(ax, {}, 10)
