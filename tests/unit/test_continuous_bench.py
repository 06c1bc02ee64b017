"""Cases of lab 41 on a tiny model: what they report and predict, and tables over their record."""

import math

import matplotlib as mpl
import pytest
from record_examples import manifest, samples
from test_paged import decoder_of

from inferlab import plot_continuous, plot_style
from inferlab.claims.continuous import continuous_avoids_idle
from inferlab.continuous import bench, ladder, tables
from inferlab.continuous.cost import StepTimes
from inferlab.continuous.emulate import emulate
from inferlab.continuous.setting import Setting
from inferlab.decoding.generate import generate
from inferlab.errors import UserError
from inferlab.lengths import Lengths
from inferlab.records import CaseInfo, Record
from inferlab.records.schema import is_metric_name
from inferlab.roofline import Ceilings
from inferlab.stats import Estimate

mpl.use("Agg")
CEILINGS = Ceilings(1e9, 1e11, 1e-3, 1e-5)
REQUESTS = [Lengths(p, n) for p, n in ((9, 5), (3, 12), (14, 3), (6, 8), (8, 2), (7, 6))]
SETTING = Setting(max_num_seqs=3, store_tokens=256, max_len=64, block_size=4)


@pytest.fixture(scope="module")
def decoder():
    return decoder_of()


@pytest.fixture(scope="module")
def times(decoder):
    return StepTimes(decoder.config, "float32", CEILINGS, CEILINGS, gathers=True)


@pytest.mark.parametrize("policy", ["static", "continuous"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_a_served_line_has_the_tokens_of_each_prompt_alone(decoder, times, policy, chunk):
    setting = Setting(policy, "paged", 3, 256, 64, 4, chunk)
    served = bench.serve(decoder, REQUESTS, setting, seed=5)
    prompts = bench.prompts_for(decoder.config.vocab_size, REQUESTS, 5)
    for prompt, request, written in zip(prompts, REQUESTS, served.token_ids, strict=True):
        assert written == generate(decoder, [prompt], request.output_len)[0]
    assert served.num_steps == len(emulate(REQUESTS, setting, times).steps)
    assert served.output_tok_per_s == pytest.approx(36 / served.wall_s)


def test_a_served_case_predicts_what_it_reports(decoder, times):
    case = bench.served_case(decoder, REQUESTS, SETTING, times, {"phase": "mix"})
    found = case.run()
    assert set(case.predicted) <= set(found) and all(map(is_metric_name, found))
    assert found["num_steps"] == case.predicted["num_steps"]
    assert case.params["chunk_size"] == 0 and case.params["policy"] == "continuous"
    kept = bench.kept_rows_case(decoder, REQUESTS, 3, {"phase": "mix"})
    assert kept.run()["output_tok_per_s"] > 0


def test_an_intruder_comes_late_and_the_others_gaps_are_told(decoder, times):
    others, late = [Lengths(4, 20)] * 2, bench.Late(Lengths(40, 3), 5)
    case = bench.intruder_case(decoder, others, late, SETTING, times, {"phase": "intruder"})
    found = case.run()
    assert set(found) == set(case.predicted) and all(map(is_metric_name, found))
    assert case.params["tail_q"] == 50 and case.params["intruder_len"] == 40
    served = bench.serve(decoder, others, SETTING, late=late)
    assert served.trace.requests[-1].scheduled >= served.trace.requests[0].events[4][0]
    with pytest.raises(UserError, match="too short"):
        bench.serve(decoder, others, SETTING, late=bench.Late(Lengths(40, 3), 50))


def test_chunks_shorten_the_longest_gap_of_an_emulated_intrusion(times):
    others, late = [Lengths(4, 60)] * 3, bench.Late(Lengths(60, 3), 10)
    roomy = {"max_num_seqs": 4, "store_tokens": 512, "max_len": 128}
    whole, chunks = (
        bench.intruder_metrics(
            bench.emulate_late(others, late, Setting(chunk_size=size, **roomy), times).trace
        )
        for size in (None, 8)
    )
    assert chunks["itl_max_s"] < whole["itl_max_s"] and chunks["ttft_s"] > whole["ttft_s"]


def test_the_engine_is_timed_beside_a_bare_loop(decoder, times):
    engine = bench.steady_case(decoder, SETTING, 6, 8, times)
    bare = bench.bare_case(decoder, "static", 3, 6, 8)
    assert set(engine.run()) == set(bare.run()) == {"step_tok_per_s", "step_s"}
    assert engine.predicted["step_tok_per_s"] > 0
    assert (engine.params["loop"], bare.params["loop"]) == ("engine", "bare static")


def record(*cases, rounds=4):
    """Cases (name, params, metrics, predicted) in one block, all rounds alike."""
    infos, rows = {}, []
    for name, params, metrics, predicted in cases:
        infos[name] = CaseInfo(params=params, predicted=predicted, block="b")
        rows += [(name, m, v, r, "ok") for m, v in metrics.items() for r in range(rounds)]
    return Record(manifest(cases=infos), samples(rows))


def mixes(*ratios):
    cases = []
    for i, ratio in enumerate(ratios):
        same = {"phase": "mix", "mix": f"m{i}", "cv": float(i), "longest_over_mean": 1.0 + i}
        for variant, rate in (("static", 100.0), ("continuous", 100.0 * ratio)):
            cases.append(
                (f"mix/{i}/{variant}", same | {"variant": variant}, {"output_tok_per_s": rate},
                 {"output_tok_per_s": rate})
            )  # fmt: skip
    return record(*cases)


@pytest.mark.parametrize(
    ("ratios", "word"),
    [((1.0, 2.0), "holds only where"), ((1.5, 2.0), "holds"), ((1.0, 0.9), "fails"),
     ((), "untested")],
)  # fmt: skip
def test_the_claim_is_judged_by_the_spread(ratios, word):
    found = mixes(*ratios) if ratios else record(("x", {}, {"tpot_s": 1.0}, {}))
    verdict = continuous_avoids_idle(found)
    assert verdict.verdict == word
    assert len(verdict.evidence) == len(ratios)


def test_gains_come_in_the_order_of_the_spread():
    found = tables.gains(mixes(1.0, 2.0))
    assert [gain.measured.value for gain in found] == [1.0, 2.0]
    assert [gain.emulated for gain in found] == [1.0, 2.0]


def cube_record(values):
    return record(
        *((f"cube/{i}", {"phase": "cube", "on": "+".join(sorted(cell))},
           {"output_tok_per_s": value}, {"output_tok_per_s": 2 * value})
          for i, (cell, value) in enumerate(values.items()))
    )  # fmt: skip


def test_the_cube_is_read_from_a_record_and_refused_when_a_cell_is_missing():
    own = {"scheduler": 2.0, "store": 3.0, "kernels": 1.5}
    values = {cell: math.prod(own[t] for t in cell) for cell in ladder.all_cells()}
    found = cube_record(values)
    assert ladder.average_factors(tables.measured_ratio(found)) == pytest.approx(own)
    assert ladder.whole(tables.emulated_ratio(found)) == pytest.approx(9)
    assert len(tables.edges(found)) == 12
    assert all(e.value == pytest.approx(own[t]) for t, _, e in tables.edges(found))
    del values[frozenset({"store"})]
    with pytest.raises(UserError, match="store switched on"):
        tables.cube(cube_record(values))


def test_the_best_size_within_a_budget_and_rows():
    rows = [("static", 4, 0.02, 100.0), ("static", 24, 0.03, 190.0), ("continuous", 8, 0.03, 200.0),
            ("continuous", 24, 0.09, 400.0)]  # fmt: skip
    found = record(
        *((f"budget/{p}-{n}", {"phase": "budget", "policy": p, "max_num_seqs": n},
           {"tpot_p95_s": t, "output_tok_per_s": r}, {}) for p, n, t, r in rows)
    )  # fmt: skip
    budget_s = tables.budget_of(found, 8)
    assert tables.best_within(found, "continuous", budget_s).max_num_seqs == 8
    assert tables.gain_within(found, budget_s, 8).value == pytest.approx(2)
    assert tables.gain_within(found, budget_s).value == pytest.approx(200 / 190)
    assert tables.gain_within(found, 0.001) is None
    with pytest.raises(UserError, match="99 sequences"):
        tables.budget_of(found, 99)


def intruded(*sizes):
    metrics = {"itl_tail_s": 0.1, "itl_median_s": 0.01, "ttft_s": 0.2, "output_tok_per_s": 10.0}
    return record(
        *((f"intruder/{s}", {"phase": "intruder", "chunk_size": s, "tail_q": 99.0}, metrics,
           {"itl_tail_s": 0.1}) for s in sizes)
    )  # fmt: skip


def test_intrusions_start_with_the_whole_prompt():
    assert [row.chunk_size for row in tables.intrusions(intruded(64, 0, 32))] == [0, 32, 64]
    with pytest.raises(UserError, match="read whole"):
        tables.intrusions(intruded(64))


def test_an_engine_without_a_bare_loop_is_refused():
    loops = [
        (f"steady/{i}", {"phase": "steady", "loop": loop}, {"step_tok_per_s": rate}, {})
        for i, (loop, rate) in enumerate((("engine", 95.0), ("bare static", 100.0)))
    ]
    assert tables.engine_over_bare(record(*loops)).value == pytest.approx(0.95)
    with pytest.raises(UserError, match="bare loop"):
        tables.engine_over_bare(record(loops[0]))


@pytest.fixture
def ax():
    _, axes = plot_style.figure()
    yield axes
    plot_style.plt.close(axes.figure)


ONE = Estimate(1.5, 1.4, 1.6, 5)


def test_a_schedule_says_how_full_it_is(ax):
    plot_continuous.rows_over_time(ax, [(0, 0, 10), (1, 0, 5)], "static", 2, 12)
    assert "75%" in ax.get_title(loc="left") and "10 steps" in ax.get_title(loc="left")


def test_gains_orders_frontiers_and_chunks_are_drawn(ax):
    plot_continuous.gain_by_spread(ax, {"continuous": [(0.0, ONE, 1.2), (1.0, ONE, None)]},
                                   [(0.0, 1.0), (1.0, 2.6)])  # fmt: skip
    assert ax.get_ylim()[1] > 2.6
    ax.clear()
    order = ("scheduler", "store", "kernels")
    plot_continuous.orders(ax, {order: dict.fromkeys(order, 2.0)}, 8.0)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["scheduler, store, kernels"]
    ax.clear()
    plot_continuous.frontier(ax, {"static": [(0.01, 100.0, 4), (0.02, 150.0, 8)]}, 0.02)
    assert "ms" in ax.get_xlabel()
    ax.clear()
    plot_continuous.by_chunk(ax, [(0, ONE, 1.4), (64, ONE, 1.1)], 0.01, "p99 gap")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["64", "whole"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot_continuous.rows_over_time(ax, [], "static", 2, 1),
        lambda ax: plot_continuous.gain_by_spread(ax, {}, []),
        lambda ax: plot_continuous.orders(ax, {}, 1.0),
        lambda ax: plot_continuous.frontier(ax, {}, None),
        lambda ax: plot_continuous.by_chunk(ax, [], 0.1, "gap"),
    ],
)
def test_a_figure_without_data_says_so(ax, draw):
    with pytest.raises(UserError):
        draw(ax)
