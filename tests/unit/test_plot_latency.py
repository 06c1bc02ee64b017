"""Figures of latencies say what they draw: units, marks, one row a request or tool."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from inferlab import plot_latency, plots
from inferlab.latency_tables import percentile_table, stall_table
from inferlab.omission import StallScenario


@pytest.fixture
def ax():
    figure, axes = plots.figure()
    yield axes
    plt.close(figure)


def test_the_event_log_has_a_row_a_request_and_rings_for_empty_chunks(ax):
    plot_latency.event_log(ax, {"a": [(0.01, 0), (0.1, 1), (0.14, 2)], "b": [(0.2, 1)]})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_xlabel() == "time since sent (ms)"
    assert sum(len(c.get_offsets()) for c in ax.collections) == 4


def test_tool_readings_keep_the_tools_order_and_name_the_unit(ax):
    plot_latency.tool_readings(ax, {"measured": {"vllm: tpot": 0.02, "x: y": 0.03}}, "per_token_s")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["vllm\ntpot", "x\ny"]
    assert ax.get_xlabel() == "time per token (ms)"


def test_the_tail_marks_one_in_a_hundred(ax):
    plot_latency.tail(ax, {"open": [0.1, 0.2, 3.0], "waiting": [0.1, 0.1, 0.1]}, "ttft_s", "open")
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert "1 in 100" in [text.get_text().replace("\n", " ") for text in ax.texts]


def test_bands_and_spreads_draw(ax):
    plot_latency.percentile_bands(ax, (300, 5000))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["300", "5,000"]
    table = pd.DataFrame(
        {"output_len": [8, 32], "median": [1.8, 1.2], "low": [1.7, 1.1], "high": [1.9, 1.3]}
    )
    plot_latency.spread_by_length(plots.figure()[1], table, 5.0)
    plt.close("all")


def test_tables_say_what_the_functions_compute():
    bands = percentile_table((300, 1000))
    assert list(bands["to"]) == ["the maximum", "p99.60"]
    stalls = stall_table(StallScenario(), (2.0,))
    assert stalls["waiting client, from sent"][0] == "5.00 ms"
    assert stalls["open client"][0] == stalls["waiting client, from due"][0]
