"""Figures read the same through the book: fixed colours, units on axes, lost cases shown."""

import subprocess
import sys

import matplotlib as mpl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_examples import manifest, samples

from inferlab import plot_style, plots
from inferlab.errors import UserError
from inferlab.pages import html_table
from inferlab.records import CaseInfo, Record

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plot_style.plt.close("all")


@pytest.fixture
def table():
    return Record(manifest(), samples()).table("tpot_s")


def context_table(**costs):
    """Cases whose TPOT is coefficient * n ** exponent, by cache."""
    cases, rows = {}, []
    for cache, (coefficient, exponent) in costs.items():
        for n in (64, 256, 1024):
            name = f"{cache}/{n}"
            cases[name] = CaseInfo(params={"cache": cache, "context_len": n})
            rows += [(name, "tpot_s", coefficient * n**exponent, r, "ok") for r in range(3)]
    return Record(manifest(cases=cases), samples(rows)).table("tpot_s")


def test_colours_are_seaborns_colorblind_palette():
    import seaborn

    names = ["BLUE", "ORANGE", "GREEN", "RED", "PURPLE", "BROWN", "PINK", "GREY", "YELLOW", "SKY"]
    ours = [getattr(plot_style, name) for name in names]
    assert ours == list(seaborn.color_palette("colorblind").as_hex())


def test_plots_never_import_torch():
    code = "import sys, inferlab.plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_new_variant_must_be_given_a_colour(table):
    with pytest.raises(UserError, match="add it to STYLES"):
        plots.style_of("vllm")
    _, ax = plots.figure()
    with pytest.raises(UserError, match="no colour for variant 'x'"):
        plots.by_batch_size(ax, table.assign(backend="x"))


def test_variants_that_share_a_figure_differ_without_colour():
    for group in (("hf", "torch"), ("none", "dynamic", "static", "offloaded"),
                  ("float32", "bfloat16", "float16"), ("bare", "bench"),
                  ("prefill", "decode")):  # fmt: skip
        styles = [plots.STYLES[name] for name in group]
        assert len({s.color for s in styles}) == len({s.marker for s in styles}) == len(group)


@pytest.mark.parametrize(
    ("metric", "values", "factor", "label"),
    [
        ("tpot_s", [0.02, 0.04], 1e3, "TPOT (ms)"),
        ("ttft_s", [3.0], 1, "TTFT (s)"),
        ("ttft_s", [3000.0], 1, "TTFT (s)"),
        ("tpot_s", [62e-6], 1e6, "TPOT (µs)"),
        ("read_bytes_per_s", [2e10], 1e-9, "read bandwidth (GB/s)"),
        ("flops_per_s", [8e14], 1e-12, "matrix rate (TFLOP/s)"),
        ("output_tok_per_s", [12e3], 1, "output throughput (tok/s)"),
        ("mbu_ratio", [0.7], 1, "MBU"),
        ("kv_bytes", [3e6], 1e-6, "KV cache (MB)"),
        ("tpot_s", [], 1, "TPOT (s)"),
        ("tpot_s", [float("nan"), 0.0], 1, "TPOT (s)"),
    ],
)
def test_axes_show_a_readable_unit(metric, values, factor, label):
    found = plots.axis_unit(metric, values)
    assert found[0] == pytest.approx(factor) and found[1] == label


@given(st.lists(st.floats(1e-12, 1e15), min_size=1, max_size=5))
def test_a_prefix_never_changes_a_value_into_zero_or_thousands(values):
    factor, _ = plots.axis_unit("kv_bytes", values)
    middle = float(pd.Series(values).median()) * factor
    assert middle < 1000 or factor == 1e-12
    assert middle >= 1 or factor == 1


def test_batch_size_figure_shows_prediction_and_lost_cases(table):
    fig, ax = plots.figure()
    plots.by_batch_size(ax, table)
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["hf", "torch", "prediction", "out of memory"]
    assert ax.get_ylabel() == "TPOT (ms)" and ax.get_xlabel() == "batch size, log scale"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "1,024"]
    fig.canvas.draw()


def test_prediction_figure_has_equal_axes_and_a_line(table):
    fig, ax = plots.figure()
    plots.predicted_vs_measured(ax, table)
    assert ax.get_xlim() == ax.get_ylim() and ax.get_xscale() == "log"
    assert ax.get_ylabel() == "measured TPOT (ms), log scale"
    fig.canvas.draw()


def test_context_figure_returns_the_exponents():
    fig, ax = plots.figure()
    fits = plots.by_context(ax, context_table(none=(1e-6, 2), static=(1e-2, 0)))
    assert fits["none"].exponent == pytest.approx(2) and abs(fits["static"].exponent) < 1e-9
    assert "n$^{2.00}$" in ax.get_legend().get_texts()[0].get_text()
    fig.canvas.draw()


def test_one_context_has_no_exponent():
    table = context_table(none=(1e-6, 2))
    _, ax = plots.figure()
    assert plots.by_context(ax, table[table["context_len"] == 64]) == {}


def test_a_table_without_the_column_says_which(table):
    _, ax = plots.figure()
    with pytest.raises(UserError, match="no column 'context_len'; it has case"):
        plots.by_context(ax, table)


def test_figures_fit_a_phone_and_a_dark_page():
    fig, _ = plots.figure()
    assert tuple(fig.get_size_inches() * fig.dpi) == (960, 600)
    assert mpl.colors.to_hex(fig.get_facecolor()) == plot_style.PAPER


def test_labels_are_never_mixed():
    _, ax = plots.figure()
    plots.label_badge(ax, "measured")
    assert ax.texts[0].get_text() == "measured"
    with pytest.raises(UserError, match="measured, emulated or cited"):
        plots.label_badge(ax, "theoretical")
    records = [Record(manifest(label=label), samples()) for label in ("measured", "emulated")]
    with pytest.raises(UserError, match="do not belong in one figure"):
        plots.caption(records)


def test_a_caption_names_device_date_versions():
    record = Record(manifest(), samples())
    text = plots.caption([record, record], "Batch size 1.")
    assert text.startswith("Example, 2 cores · 2026-01-02 · inferlab 0.1.0, torch 2.13.0")
    assert text.count("Example") == 1 and text.endswith(" Batch size 1.")
    with pytest.raises(UserError, match="at least one record"):
        plots.caption([])


def test_html_of_a_table_is_escaped():
    evil = "<script>alert(1)</script>"
    html = html_table(pd.DataFrame({evil: [evil]}), caption=evil).data
    assert "<script" not in html and html.count("&lt;script&gt;") == 3


def test_tables_of_several_devices_become_one(table):
    both = plots.tidy({"a": table, "b": table, "c": table.iloc[:0]})
    assert list(both["device"].unique()) == ["a", "b"] and len(both) == 2 * len(table)
    assert plots.tidy({}).empty
