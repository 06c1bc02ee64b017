"""Claims about quantization: decided by cells and rows, with their baselines beside them."""

import pytest
from record_examples import manifest, samples

from inferlab.claims import judge, load_ledger
from inferlab.claims.quant import (
    accuracy_lost_within,
    faster_only_while_bandwidth_bound,
    indistinguishable,
    latency_cut_within,
)
from inferlab.records import CaseInfo, Record


def record(cases, rows, **changes):
    return Record(manifest(cases=cases, **changes), samples(rows))


def speed(*specs):
    """Cells (batch size, memory_s, compute_s, speed-up of int8)."""
    cases, rows = {}, []
    for batch, memory_s, compute_s, gain in specs:
        for variant, seconds in (("bfloat16", 0.01), ("int8", 0.01 / gain)):
            name = f"cells/{variant}/b{batch}"
            cases[name] = CaseInfo(
                params={
                    "variant": variant, "batch_size": batch, "context_len": 64, "model": "m"
                },
                predicted={"decode_memory_s": memory_s, "decode_compute_s": compute_s},
                block="cells",
            )  # fmt: skip
            rows += [(name, "tpot_s", seconds, r, "ok") for r in range(5)]
    return record(cases, rows)


def test_faster_while_bound_and_slower_beyond_holds():
    verdict = faster_only_while_bandwidth_bound(
        speed((1, 8, 1, 1.7), (4, 8, 4, 0.9), (16, 8, 16, 0.5))
    )
    assert verdict.verdict == "holds"
    assert verdict.where == (
        "bandwidth-bound: faster in 1 of 2 cells, slower in 1; slower from batch size 4 on; "
        "compute-bound: faster in 0 of 1 cells, slower in 1"
    )


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        (((1, 8, 1, 1.7), (16, 8, 16, 1.2)), "holds only where"),  # helps where it should not
        (((1, 8, 1, 0.7), (16, 8, 16, 0.5)), "fails"),  # helps nowhere
        (((1, 8, 1, 1.7),), "untested"),  # the limit was not reached
        (((1, 8, 1, 0.7),), "fails"),
        (((16, 8, 16, 0.7),), "untested"),
    ],
)
def test_what_cells_decide(cells, word):
    assert faster_only_while_bandwidth_bound(speed(*cells)).verdict == word


def test_cells_without_floors_or_baseline_say_nothing():
    whole = speed((1, 8, 1, 1.7))
    cases = {n: i for n, i in whole.manifest.cases.items() if "int8" in n}
    rows = whole.samples[whole.samples["case"].isin(list(cases))].values.tolist()
    alone = record(cases, rows)
    assert faster_only_while_bandwidth_bound(alone).verdict == "untested"
    assert latency_cut_within(alone, low=0.4, high=0.6).verdict == "untested"


@pytest.mark.parametrize(
    ("gains", "word"),
    [((2.0, 1.8), "holds"), ((2.0, 1.1), "holds only where"), ((1.1, 0.5), "fails")],
)
def test_the_share_saved_is_one_minus_the_inverse_speedup(gains, word):
    cells = [(batch, 8, 1, gain) for batch, gain in zip((1, 4), gains, strict=True)]
    verdict = latency_cut_within(speed(*cells), low=0.4, high=0.6)
    assert verdict.verdict == word
    found = next(iter(verdict.evidence.values()))
    assert found.value == pytest.approx(1 - 1 / gains[0])


def quality(*specs, questions=1000):
    """Rows (format, top-1, perplexity, answers lost, answers won) on the rotated copy."""
    cases, rows = {}, []
    for format, top1, perplexity, worse, better in specs:
        name = f"quality/rotated/{format}/rtn"
        cases[name] = CaseInfo(
            params={"copy": "rotated", "format": format, "method": "rtn", "model": "smollm2-135m"}
        )
        values = {"top1_ratio": top1, "perplexity": perplexity, "num_flips_worse": worse,
                  "num_flips_better": better, "num_questions": questions}  # fmt: skip
        rows += [(name, metric, float(value), 0, "ok") for metric, value in values.items()]
    return record(cases, rows)


BASE = ("bfloat16", 1.0, 10.0, 0, 0)


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([("int8", 0.99, 10.0, 1, 1)], "holds"),
        ([("int4-g32", 0.8, 12.0, 80, 10)], "fails"),
        ([("int8", 0.99, 10.0, 1, 1), ("int4-g32", 0.8, 12.0, 80, 10)], "holds only where"),
        ([("int8", 0.99, 10.0, 12, 8)], "untested"),  # the interval holds the bound
    ],
)
def test_paired_flips_decide_about_accuracy(rows, word):
    verdict = accuracy_lost_within(quality(BASE, *rows), at_most=0.01)
    assert verdict.verdict == word, verdict.where
    assert "standard error" in verdict.where


def test_few_questions_cannot_show_one_percent():
    verdict = accuracy_lost_within(
        quality(BASE, ("int8", 0.99, 10.0, 2, 2), questions=150), at_most=0.01
    )
    assert verdict.verdict == "untested" and "undecided: int8 rtn" in verdict.where


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([("int8", 0.97, 10.05, 0, 0)], "holds"),
        ([("int8", 0.97, 10.05, 0, 0), ("int4-g32", 0.8, 12.0, 0, 0)], "holds only where"),
        ([("int4-g32", 0.97, 12.0, 0, 0)], "fails"),
    ],
)
def test_indistinguishable_within_bounds(rows, word):
    verdict = indistinguishable(quality(BASE, *rows), least_top1=0.95, most_perplexity=1.01)
    assert verdict.verdict == word


def test_without_a_baseline_or_rows_quality_claims_are_untested():
    bounds = {"least_top1": 0.95, "most_perplexity": 1.01}
    assert indistinguishable(quality(("int8", 0.9, 10.0, 0, 0)), **bounds).verdict == "untested"
    assert indistinguishable(quality(BASE), **bounds).verdict == "untested"
    assert accuracy_lost_within(quality(BASE), at_most=0.01).verdict == "untested"


def test_the_ledger_judges_a_record_of_the_lab():
    ledger = load_ledger()
    found = speed((1, 8, 1, 1.9), (16, 8, 16, 0.5))
    assert judge(ledger.get("quant-needs-bandwidth-bound"), found).verdict == "holds"
    assert judge(ledger.get("quant-40-60"), found).verdict == "holds only where"
    assert judge(ledger.get("quant-1pct"), found).verdict == "untested"
    assert judge(ledger.get("quant-indistinguishable"), found).verdict == "untested"
