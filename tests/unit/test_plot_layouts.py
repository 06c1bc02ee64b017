"""Figures of chapter 21 draw every row, in the colours of the book, and refuse what is missing."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from inferlab import plot_layouts, plots
from inferlab.cited import load_cited
from inferlab.errors import UserError


@pytest.fixture
def ax():
    _, ax = plots.figure()
    yield ax
    plt.close("all")


def labels(ax):
    return ax.get_legend_handles_labels()[1]


def test_shares_are_drawn_with_their_prediction(ax):
    rows = [
        {"family": family, "context_len": length, "share": share, "predicted": share / 2}
        for family, share in (("mha", 0.8), ("latent", 0.6))
        for length in (128, 2048)
    ]
    plot_layouts.share_by_context(ax, pd.DataFrame(rows))
    assert labels(ax) == ["mha", "latent", "prediction"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["128", "2,048"]


def test_throughput_names_layout_and_batch(ax):
    row = {"family": "gqa", "layout": "gqa", "token_bytes": 23_040, "batch_size": 8, "median": 90.0,
           "low": 80.0, "high": float("nan"), "predicted": 100.0}  # fmt: skip
    plot_layouts.throughput_by_bytes(ax, pd.DataFrame([row]))
    assert set(labels(ax)) == {"gqa: 8 sequences", "prediction"}
    assert "KV cache (kB) of a token" in ax.get_xlabel()


def test_quality_marks_what_was_trained_and_has_a_floor(ax):
    rows = [
        ("gqa", "gqa", "as made", 23_040, 0.0), ("mqa", "mqa", "as made", 7680, 6.0),
        ("mqa", "mqa", "fine-tuned", 7680, 1.0), ("latent", "latent-128", "as made", 7680, 0.5),
    ]  # fmt: skip
    names = ["family", "layout", "training", "kv_bytes_per_token", "median"]
    plot_layouts.quality_by_bytes(ax, pd.DataFrame(rows, columns=names))
    assert "mqa, fine-tuned" in labels(ax)
    assert min(line.get_ydata().min() for line in ax.lines) == 1e-6


@pytest.mark.parametrize(
    "draw",
    [
        plot_layouts.share_by_context,
        plot_layouts.throughput_by_bytes,
        plot_layouts.quality_by_bytes,
    ],
)
def test_a_table_without_its_columns_is_refused(ax, draw):
    with pytest.raises(UserError, match="no column 'family'"):
        draw(ax, pd.DataFrame({"layout": ["mha"]}))
    columns = ["family", "layout", "context_len", "share", "predicted", "token_bytes", "batch_size",
               "median", "low", "high", "training", "kv_bytes_per_token"]  # fmt: skip
    with pytest.raises(UserError, match="no rows"):
        draw(ax, pd.DataFrame(columns=columns))


def test_the_cited_figures_are_there():
    figures = load_cited()
    assert figures["deepseek-v2-groups"].value == (512 + 64) / (2 * 128)
    assert figures["deepseek-v2-kv-cut"].evidence == "abstract"
