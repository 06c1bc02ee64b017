"""The figures of chapter 11: one row a format, outliers by rank and layer, quality by alpha."""

import math

import matplotlib as mpl
import pandas as pd
import pytest

from inferlab import plot_precision, plot_style
from inferlab.errors import UserError

mpl.use("Agg")


@pytest.fixture
def axes():
    plot_style.use_style()
    figure, axes = plot_style.plt.subplots(1, 2)
    yield axes
    plot_style.plt.close(figure)


def row(variant, median, predicted=math.nan):
    return {"variant": variant, "median": median, "low": 0.9 * median, "high": math.nan,
            "predicted": predicted}  # fmt: skip


def test_formats_stand_in_the_book_s_order_and_share_their_rows(axes):
    phases = {"prefill": [row("w8a8", 1.4, 1.5)], "decode": [row("float32", 0.5), row("w8a8", 1.6)]}
    plot_precision.phase_speedups(axes, phases)
    labels = [[t.get_text() for t in ax.get_yticklabels()] for ax in axes]
    assert labels == [["float32", "w8a8"]] * 2
    assert all(ax.get_xscale() == "log" for ax in axes)
    assert [ax.get_title(loc="left") for ax in axes] == list(plot_precision.PHASES.values())


def test_an_empty_comparison_is_refused(axes):
    with pytest.raises(UserError, match="no speed-up"):
        plot_precision.phase_speedups(axes, {"prefill": [], "decode": []})


def test_a_format_without_a_look_is_refused(axes):
    with pytest.raises(UserError, match="no colour"):
        plot_precision.phase_speedups(axes, {"prefill": [row("fp3", 1)], "decode": []})


def test_ranks_and_layers_are_drawn_by_kind(axes):
    plot_precision.ranges_by_rank(axes[0], {"plain": {1: 90, 10: 4, 100: 1}, "rotated": {1: 2}})
    table = pd.DataFrame({"kind": ["plain"] * 3, "layer": [2, 0, 1], "median": [30.0, 10, 20]})
    plot_precision.outliers_by_layer(axes[1], table)
    drawn = [line for ax in axes for line in ax.lines if line.get_label() == "plain"]
    assert [list(line.get_xdata()) for line in drawn] == [[1, 10, 100], [0, 1, 2]]


def test_quality_by_alpha_shows_another_variant_as_a_level(axes):
    table = pd.DataFrame({"kind": "plain", "alpha": [1.0, 0.0, 0.5], "median": [0.3, 0.2, 0.1]})
    plot_precision.quality_by_alpha(axes[0], table, ("w8a8", 0.05))
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels == ["plain", "w8a8"]
