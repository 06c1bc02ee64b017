"""Cases of lab 22 on a tiny model: what they report, what they predict, what follows from them."""

import matplotlib as mpl
import pytest
import torch
from record_examples import manifest, samples
from test_paged import decoder_of
from tiny_models import TINY

from inferlab import pagingbench, pagingserved, plot_paging, plot_style
from inferlab.claims.paging import paging_enlarges_batches
from inferlab.errors import UserError
from inferlab.exercises import lab22
from inferlab.exercises.judge import UNANSWERED
from inferlab.fitting import Fitted
from inferlab.lengths import Lengths
from inferlab.models.cost import kv_cache_bytes
from inferlab.pagingcost import footprint, price_rows
from inferlab.pagingserver import serve
from inferlab.records import CaseInfo, Record
from inferlab.records.schema import is_metric_name
from inferlab.roofline import Ceilings
from inferlab.stats import Estimate

mpl.use("Agg")
CEILINGS = Ceilings(read_bytes_per_s=1e9, flops_per_s=1e11, overhead_s=1e-3)
FITTED = Fitted(CEILINGS, CEILINGS)


def test_a_shuffled_cache_is_full_and_its_blocks_lie_anywhere():
    cache = pagingbench.shuffled_cache(TINY["llama"], torch.float32, "cpu", 3, 40, 8, 4)
    assert cache.lengths() == [40, 40, 40] and cache.manager.num_free == 36 - 30
    blocks = [b for seq_id in range(3) for b in cache.manager.block_table(seq_id)]
    assert blocks != sorted(blocks) and len(set(blocks)) == 30
    assert cache.manager.problems() == []


def cases_of(block_sizes, make):
    return {f"x/{size}": make(size) for size in block_sizes}


def test_cases_time_attention_and_steps_and_predict_three_times_the_bytes_of_a_gather():
    config, decoder = TINY["llama"], decoder_of()
    for case in (
        pagingbench.attention_case(config, torch.float32, "cpu", 2, 33, None, 2),
        pagingbench.attention_case(config, torch.float32, "cpu", 2, 33, 8, 2),
    ):
        assert case.run()["attention_s"] > 0
        assert case.params["kv_bytes"] == kv_cache_bytes(config, "float32", 2, 33)
    assert case.predicted == {"over_dense_ratio": 3.0}
    copy = pagingbench.gather_case(config, torch.float32, "cpu", 2, 33, 8, 2, 1e9)
    assert copy.run()["gather_s"] > 0
    assert copy.predicted["gather_s"] == 2 * kv_cache_bytes(config, "float32", 2, 33) / 1e9
    dense, paged = (pagingbench.step_case(decoder, 2, 30, 3, size, FITTED) for size in (None, 8))
    assert set(dense.run()) == set(paged.run()) == {"tpot_s", "fastest_step_s"}
    more = 2 * kv_cache_bytes(config, "float32", 2, 30) / 1e9
    assert paged.predicted["tpot_s"] == pytest.approx(dense.predicted["tpot_s"] + more)


REQUESTS = [Lengths(p, 5) for p in (9, 3, 14, 6, 8, 7)]


def served(policy):
    return pagingserved.served_case(
        decoder_of(), REQUESTS, "mine", policy, 64, 32, 4, FITTED, seed=1
    )


def test_policies_run_through_one_code_and_their_counts_follow_from_the_lengths():
    found = {policy: served(policy).run() for policy in ("maximum", "known", "paged")}
    assert found["maximum"]["num_seqs"] <= 2 < found["paged"]["num_seqs"]
    waste = footprint(REQUESTS, "maximum", 32).waste_ratio
    assert found["maximum"]["waste_ratio"] == pytest.approx(waste)
    whole = footprint(REQUESTS, "paged", 32, 4).waste_ratio
    assert found["known"]["waste_ratio"] == pytest.approx(whole)
    assert served("paged").predicted["waste_ratio"] == pytest.approx(whole)
    config = decoder_of().config
    for run in found.values():
        assert run["store_bytes"] == kv_cache_bytes(config, "float32", 1, 64)
        assert run["output_tok_per_s"] < run["step_tok_per_s"] * 2
    assert found["paged"]["num_steps"] == serve(REQUESTS, 64, "paged", 32, 4).steps
    assert found["known"]["num_preempted"] == 0
    assert all(map(is_metric_name, found["paged"]))


def test_predicted_sequences_never_exceed_the_requests():
    predicted = served("paged").predicted
    assert 2 < predicted["num_seqs"] <= len(REQUESTS)
    assert served("maximum").predicted["num_seqs"] == 2


def record_of(gains, waste=0.05):
    cases, rows = {}, []
    for mix, gain in gains.items():
        for policy, seqs in (("maximum", 4.0), ("paged", 4.0 * gain)):
            name = f"served/{mix}/{policy}"
            params = {"phase": "served", "mix": mix, "policy": policy, "model": "m",
                      "store_tokens": 64}  # fmt: skip
            cases[name] = CaseInfo(params=params, predicted={}, block=f"served/{mix}")
            values = {"num_seqs": seqs, "output_tok_per_s": 10 * seqs**0.5, "waste_ratio": waste}
            rows += [(name, m, v, r, "ok") for m, v in values.items() for r in range(3)]
    return Record(manifest(cases=cases), samples(rows))


@pytest.mark.parametrize(
    ("gains", "waste", "word"),
    [
        ({"a": 8.0, "b": 3.0}, 0.05, "holds"),
        ({"a": 8.0, "same": 1.0}, 0.05, "holds only where"),
        ({"same": 1.0}, 0.05, "fails"),
        ({"a": 8.0}, 0.5, "fails"),
        ({}, 0.05, "untested"),
    ],
)
def test_the_claim_is_decided_by_sequences_and_waste(gains, waste, word):
    verdict = paging_enlarges_batches(record_of(gains, waste))
    assert verdict.verdict == word
    if "a" in gains and waste < 0.1:
        assert "a: 8.00x the running sequences, 2.83x the output, waste 5% to 5%" in verdict.where


def test_prices_pair_each_block_size_with_the_dense_case_of_its_shape():
    cases, rows = {}, []
    for context in (64, 256):
        for size, seconds in ((0, 1.0), (8, 1.5), (64, 1.1)):
            name = f"price/s{context}-p{size}"
            params = {"phase": "attention", "cache": "paged" if size else "static", "model": "m",
                      "block_size": size, "batch_size": 2, "context_len": context}  # fmt: skip
            predicted = {"over_dense_ratio": 3.0 if size else 1.0}
            cases[name] = CaseInfo(params=params, predicted=predicted, block="price")
            rows += [(name, "attention_s", seconds * context, r, "ok") for r in range(3)]
    found = price_rows(Record(manifest(cases=cases), samples(rows)), "attention_s")
    assert [(r["context_len"], r["block_size"], r["ratio"].value) for r in found] == [
        (64, 8, 1.5), (64, 64, 1.1), (256, 8, 1.5), (256, 64, 1.1),
    ]  # fmt: skip
    assert {row["predicted"] for row in found} == {3.0}
    _, ax = plot_style.figure()
    plot_paging.price_by_block(ax, found)
    assert "prediction" in ax.get_legend_handles_labels()[1]
    with pytest.raises(UserError, match="no paged case"):
        plot_paging.price_by_block(ax, [])
    plot_style.plt.close("all")


def test_figures_of_waste_and_of_policies():
    _, ax = plot_style.figure()
    waste = {"conv": {8: 0.01, 64: 0.03}}
    plot_paging.waste_by_block(ax, waste, {"conv": {"maximum": 0.9}}, {8: 0.01, 64: 0.03})
    assert "half a block" in ax.get_legend_handles_labels()[1]
    with pytest.raises(UserError, match="at least one mix"):
        plot_paging.waste_by_block(ax, {}, {}, {})
    _, ax = plot_style.figure()
    values = {"maximum": Estimate(4, 3.9, 4.2, 3), "paged": Estimate(30, float("nan"), 0, 1)}
    plot_paging.by_policy(ax, values, {"maximum": 4, "paged": 31}, "running sequences")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["maximum", "paged"]
    ax.figure.canvas.draw()
    plot_style.plt.close("all")


LLAMA_KV = 2 * 32 * 8 * 128 * 2  # counted by hand from the published shape


@pytest.mark.parametrize(
    ("check", "right", "wrong", "words"),
    [
        (lab22.check_waste, 1 - 1024 / 8192, 1024 / 8192, "the share that is used"),
        (lab22.check_sequences, 64e9 / LLAMA_KV / 1031.5, 64e9 / LLAMA_KV / 8192, "the maximum"),
        (lab22.check_sharing, 62 + 8 * 7, 8 * 69, "without sharing"),
        (lab22.check_sharing, 62 + 8 * 7, 63 + 8 * 7, "each answer copies it"),
        (lab22.check_table, 1 + 4 / (2 * 128 * 2), 4 / 512, "what is added"),
        (lab22.check_regime, "fixed lengths", "long answers", "one by one"),
    ],
)
def test_exercises_take_the_right_answer_and_name_the_slip(check, right, wrong, words):
    assert check(None) == UNANSWERED
    assert check(right).startswith("correct")
    assert words in check(wrong)
