"""The claim that a convenient benchmark hides real traffic: decided by tails, not by means."""

import pytest
from record_examples import manifest, samples

from inferlab.claims import judge, load_ledger
from inferlab.claims.underload import traffic_moves_the_tail
from inferlab.records import CaseInfo, Record


def record(*specs, metrics=("ttft_p95_s", "tpot_p95_s"), block="tail", void=""):
    """A convenient run of 1 s and 0.1 s, and (traffic, factor of TTFT, of TPOT, of throughput)."""
    cases, rows = {}, []
    for traffic, *factors in (("constant-even", 1, 1, 1), *specs):
        name = f"tail/{traffic}"
        convenient = traffic == "constant-even"
        cases[name] = CaseInfo(
            params={"phase": "tail", "family": "chat", "traffic": traffic,
                    "is_convenient": convenient},
            block="tail" if convenient else block,
        )  # fmt: skip
        values = (factors[0] * 1.0, factors[1] * 0.1, factors[2] * 100.0)
        for metric, value in zip((*metrics, "output_tok_per_s"), values, strict=True):
            rows.append((name, metric, value, 0, "ok"))
        rows.append((name, "void_count", float(traffic == void), 0, "ok"))
    return Record(manifest(cases=cases), samples(rows))


@pytest.mark.parametrize(
    ("specs", "word"),
    [
        ([("bursts", 5, 1.1, 1)], "holds"),
        ([("bursts", 1.1, 2, 1)], "holds"),
        ([("bursts", 5, 1, 1), ("poisson", 1.2, 1.1, 1)], "holds only where"),
        ([("poisson", 1.2, 1.1, 1)], "fails"),
        ([], "untested"),
    ],
)
def test_what_tails_decide(specs, word):
    assert traffic_moves_the_tail(record(*specs)).verdict == word


def test_it_says_which_tail_and_whether_throughput_would_have_told():
    verdict = traffic_moves_the_tail(record(("bursts", 5, 1.1, 0.98), ("mix", 1.6, 1, 0.7)))
    assert verdict.where == (
        "tails moved by bursts: p95 of TTFT 5.00x, mix: p95 of TTFT 1.60x, "
        "which its throughput shows too"
    )
    assert verdict.evidence["p95 of TPOT over a convenient run, bursts"].value == pytest.approx(1.1)


def test_the_outermost_percentile_counts_and_other_blocks_do_not():
    found = record(("bursts", 5, 1, 1), metrics=("ttft_p99_s", "tpot_p95_s"))
    assert "p99 of TTFT" in traffic_moves_the_tail(found).where
    assert traffic_moves_the_tail(record(("bursts", 5, 1, 1), block="other")).verdict == "untested"


def test_a_void_run_decides_nothing():
    specs = ("bursts", 5, 1, 1), ("mix", 1.1, 1, 1)
    verdict = traffic_moves_the_tail(record(*specs, void="mix"))
    assert verdict.verdict == "holds"
    assert verdict.where == "tails moved by bursts: p95 of TTFT 5.00x; left out as void: mix"
    nothing = traffic_moves_the_tail(record(*specs, void="constant-even"))
    assert nothing.verdict == "untested" and "void: bursts, mix" in nothing.where


def test_the_ledger_judges_a_record_of_the_lab():
    assert judge(load_ledger().get("benchmark-gap"), record(("bursts", 5, 1, 1))).verdict == "holds"
