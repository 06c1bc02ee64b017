"""Figures of low-bit weights: known colours, a line at one, a prediction where there is one."""

import matplotlib as mpl
import pandas as pd
import pytest

from inferlab import plot_style, plots
from inferlab.errors import UserError
from inferlab.plot_quant import loss_by_format, quality_against_time, speedup_by_batch

mpl.use("Agg")
NAN = float("nan")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plot_style.plt.close("all")


def labels(ax):
    return ax.get_legend_handles_labels()[1]


def test_speedups_with_and_without_a_prediction():
    rows = pd.DataFrame(
        [("int8", 1, 1.7, 1.6, 1.8, 1.75), ("int8", 16, 0.5, NAN, NAN, 0.45),
         ("int4-genai", 1, 2.0, 1.9, 2.1, NAN)],
        columns=["variant", "batch_size", "median", "low", "high", "predicted"],
    )  # fmt: skip
    _, ax = plots.figure()
    speedup_by_batch(ax, rows)
    assert labels(ax)[-1] == "int4-genai" or "prediction" in labels(ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "16"]
    assert ax.get_ylim()[0] == 0
    ax.figure.canvas.draw()


def test_losses_by_format_keep_the_order_of_the_table():
    table = pd.DataFrame(
        {"format": ["int8", "int4-g32", "int4-g32"], "copy": ["rotated", "plain", "rotated"],
         "median": [3e-3, 4e-5, 0.4]}
    )  # fmt: skip
    _, ax = plots.figure()
    loss_by_format(ax, table)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["int8", "int4-g32"]
    assert set(labels(ax)) == {"rotated", "plain"} and "nats" in ax.get_xlabel()
    ax.figure.canvas.draw()


def test_quality_against_time_names_each_batch_size():
    points = pd.DataFrame(
        [("int8", "int8", 1, 1.7, 3e-3), ("int8", "int8", 16, 0.5, 3e-3),
         ("int4 gptq", "gptq", 1, 2.0, 0.1)],
        columns=["name", "style", "batch_size", "speedup", "loss"],
    )  # fmt: skip
    _, ax = plots.figure()
    quality_against_time(ax, points)
    assert labels(ax) == ["int8", "int4 gptq"]
    assert sorted(text.get_text() for text in ax.texts) == ["1", "1", "16"]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("draw", [speedup_by_batch, loss_by_format, quality_against_time])
def test_a_table_without_what_is_needed_is_refused(draw):
    _, ax = plots.figure()
    with pytest.raises(UserError, match="the table has no"):
        draw(ax, pd.DataFrame({"x": [1]}))
