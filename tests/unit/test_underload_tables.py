"""Tables and figures of chapter 46: what stands in them, and what they refuse."""

import math

import matplotlib as mpl
import numpy as np
import pytest
from record_examples import manifest, samples

from inferlab import plot_style, plot_underload
from inferlab.errors import UserError
from inferlab.records import CaseInfo, Record
from inferlab.underload import tables
from inferlab.underload.traffic import FAMILIES

mpl.use("Agg")


@pytest.fixture
def ax():
    _, axes = plot_style.figure()
    yield axes
    plot_style.plt.close(axes.figure)


def record():
    cases, rows = {}, []
    for share in (0.5, 1.5):
        name = f"sweep/{share}"
        cases[name] = CaseInfo(
            params={"phase": "sweep", "share": share, "rate_req_per_s": 10 * share,
                    "slo_ttft_s": 0.5, "slo_tpot_s": 0.03},
            predicted={"ttft_p95_s": 0.1 * share}, block="sweep",
        )  # fmt: skip
        rows += [(name, "ttft_p95_s", 0.2 * share, 0, "ok"),
                 (name, "answered_req_per_s", 5 + 2 * share, 0, "ok"),
                 (name, "e2e_mean_s", share, 0, "ok")]  # fmt: skip
    cases["search/poisson"] = CaseInfo(
        params={"phase": "search", "capacity_req_per_s": 10.0, "knee_req_per_s": 6.0,
                "by_hand_req_per_s": 8.0},
        predicted={"max_rate_req_per_s": 7.0}, block="search",
    )  # fmt: skip
    rows += [("search/poisson", "max_rate_req_per_s", 6.5, 0, "ok"),
             ("search/poisson", "above_rate_req_per_s", 7.2, 0, "ok")]  # fmt: skip
    cases["published/1000-1000"] = CaseInfo(
        params={"phase": "published", "model": "llama-3.1-8b", "dtype": "bfloat16",
                "prompt_len": 1000, "output_len": 1000, "num_seqs": 256,
                "roofline_tok_per_s": 20_000.0}, block="published",
    )  # fmt: skip
    rows.append(("published/1000-1000", "output_tok_per_s", 5000.0, 0, "ok"))
    return Record(manifest(cases=cases), samples(rows))


def test_expected_stands_beside_measured_where_something_was():
    table = tables.beside(record(), "sweep", ["share"], ["ttft_p95_s", "tpot_p95_s"])
    assert list(table) == ["share", "ttft_p95_s", "ttft_p95_s*", "tpot_p95_s"]
    assert table["ttft_p95_s"].tolist() == pytest.approx([0.1, 0.3])
    assert table["tpot_p95_s"].isna().all()
    assert tables.beside(record(), "nothing", ["share"], ["ttft_p95_s"]).empty
    shown = tables.shown(table, {"share": "of the knee", "ttft_p95_s": "p95"})
    assert shown.iloc[0].to_dict() == {
        "of the knee": "50%", "p95": "100 ms", "p95, expected": "50.0 ms"
    }  # fmt: skip


def test_units_of_shown_values():
    text = tables._text
    assert text("rate_req_per_s", 12.34) == "12.3 req/s"
    assert text("events_per_s", 2000.0) == "2,000 events/s"
    assert text("output_tok_per_s", 123.4) == "123 tok/s"
    assert (text("a_count", 3.0), text("n", 3), text("x", None), text("x", "conv")) == (
        "3.00", "3", "", "conv",
    )  # fmt: skip


def test_percentiles_of_samples_scatter_as_the_binomial_distribution_says():
    values = np.random.default_rng(0).exponential(size=4000)
    table = tables.subsamples(values, 95, (20, 100, 400), seed=1)
    assert table["low"].to_numpy() == pytest.approx(table["low*"], rel=0.1)
    assert table["high"].to_numpy() == pytest.approx(table["high*"], rel=0.1)
    width = (table["high"] / table["low"]).tolist()
    assert width[0] > width[1] > width[2] > 1
    for bad, words in (([1.0], "two finite"), ([1.0, math.nan], "two finite")):
        with pytest.raises(UserError, match=words):
            tables.subsamples(bad, 95, (5,), 0)
    with pytest.raises(UserError, match="between 0 and 100"):
        tables.subsamples(values, 100, (5,), 0)


def test_published_figures_are_named_with_their_precision():
    (row,) = tables.published([record()]).to_dict("records")
    assert row["of the roofline"] == "25%" and row["published, FP8 on H200"] == "17,700 tok/s"
    assert row["model"] == "llama-3.1-8b, bfloat16" and tables.published([]).empty


def test_limits_of_a_device():
    (row,) = tables.limits([record()]).to_dict("records")
    assert (row["found"], row["emulated"], row["TPOT at most"]) == (
        "6.50 req/s", "7.00 req/s", "30 ms",
    )  # fmt: skip


def test_the_knee_is_the_swept_rate_of_most_throughput_over_latency():
    assert tables.measured_knee(record()) == 5.0
    with pytest.raises(UserError, match="no sweep"):
        tables.measured_knee(Record(manifest(), samples()))


def test_a_sweep_shows_the_capacity_and_its_limit(ax):
    plot_underload.by_rate(ax, record().table("ttft_p95_s"), "ttft_p95_s", "p95 of TTFT", 10.0, 0.5)
    words = [t.get_text() for t in ax.get_legend().get_texts()]
    assert words == ["measured", "emulated", "predicted capacity", "limit"]
    assert ax.get_ylabel() == "p95 of TTFT (ms), log scale" and ax.get_yscale() == "log"


def test_shares_have_a_plain_axis_from_zero(ax):
    table = record().table("ttft_p95_s")
    plot_underload.by_rate(ax, table, "good_ratio", "within the limits", 10.0)
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0


def test_the_scatter_of_a_percentile_is_drawn_with_its_prediction(ax):
    table = tables.subsamples(np.geomspace(0.01, 1, 300), 95, (20, 100), seed=1)
    plot_underload.scatter_of_percentile(ax, table, 95)
    assert ax.get_ylabel().startswith("p95 of TTFT (")


def test_the_clients_errors_stand_under_their_bounds(ax):
    rows = {"TTFT": [(1, 1e-5, 1e-4), (200, 2e-5, 1e-3)], "ITL": [(1, 1e-6, 1e-5)]}
    plot_underload.client_errors(ax, rows)
    assert {t.get_text() for t in ax.texts} == {"bound of the median", "bound of p99"}


def test_nothing_to_draw_is_refused(ax):
    with pytest.raises(UserError, match="no sweep"):
        plot_underload.by_rate(ax, record().table("max_rate_req_per_s").iloc[:0], "x_s", "x", 1.0)
    with pytest.raises(UserError, match="no sample sizes"):
        plot_underload.scatter_of_percentile(ax, tables.subsamples([1, 2], 95, (), 0), 95)
    with pytest.raises(UserError, match="no calibration"):
        plot_underload.client_errors(ax, {"TTFT": []})


def test_every_traffic_has_a_look():
    assert all(plot_style.style_of(name) for names in FAMILIES.values() for name in names)
