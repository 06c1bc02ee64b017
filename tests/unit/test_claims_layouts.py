"""The claim about sharing heads is decided by bytes, sequences and throughput together."""

import pytest
from record_examples import manifest, samples

from inferlab.claims import judge, load_ledger
from inferlab.claims.layouts import sharing_raises_throughput
from inferlab.records import CaseInfo, Record

TOKEN_BYTES = {"mha": 900, "gqa": 300, "mqa": 100}


def record(seqs, rates, alone=None, bytes_of=TOKEN_BYTES):
    """Sequences and throughput at the largest batch by layout; TPOT alone at two contexts."""
    cases, rows = {}, []

    def add(name, phase, layout, values, **params):
        cases[name] = CaseInfo(
            params={"phase": phase, "layout": layout, **params}, predicted={}, block=phase
        )
        rows.extend(
            (name, metric, value, r, "ok") for metric, value in values.items() for r in range(5)
        )

    for layout, count in seqs.items():
        add(f"room/{layout}", "room", layout, {"num_seqs": count})
        held = count * bytes_of[layout]
        values = {"kv_bytes": held, "output_tok_per_s": rates[layout]}
        add(f"capacity/{layout}", "capacity", layout, values, batch_size=count)
    for layout, seconds in (alone or {}).items():
        for length, value in seconds.items():
            add(f"context/{layout}/{length}", "context", layout, {"tpot_s": value},
                batch_size=1, context_len=length)  # fmt: skip
    return Record(manifest(cases=cases), samples(rows))


SEQS, RATES = {"mha": 2, "gqa": 6, "mqa": 18}, {"mha": 50, "gqa": 120, "mqa": 200}


def test_bytes_sequences_and_throughput_make_it_hold():
    verdict = sharing_raises_throughput(record(SEQS, RATES))
    assert verdict.verdict == "holds"
    assert "gqa: bytes of a token / 3.0, sequences × 3.0, throughput × 2.4" in verdict.where
    alone = {"mha": {64: 0.02, 512: 0.09}, "gqa": {64: 0.01, 512: 0.03}}
    assert sharing_raises_throughput(record(SEQS, RATES, alone)).verdict == "holds"


def test_a_single_sequence_without_a_gain_bounds_it():
    alone = {"mha": {64: 0.0101, 512: 0.09}, "gqa": {64: 0.01, 512: 0.03}}
    verdict = sharing_raises_throughput(record(SEQS, RATES, alone))
    assert verdict.verdict == "holds only where"
    assert verdict.where.endswith("one sequence of 64 tokens: speed-up 1.01")


@pytest.mark.parametrize(
    ("seqs", "rates", "word"),
    [
        (SEQS, {"mha": 50, "gqa": 40, "mqa": 200}, "holds only where"),
        (SEQS, {"mha": 50, "gqa": 40, "mqa": 30}, "fails"),
        ({"mha": 2, "gqa": 2, "mqa": 2}, RATES, "fails"),
        ({"mha": 2}, {"mha": 50}, "untested"),
        ({}, {}, "untested"),
    ],
)
def test_what_it_takes_to_hold(seqs, rates, word):
    assert sharing_raises_throughput(record(seqs, rates)).verdict == word


def test_a_cut_that_is_not_massive_fails():
    small = {"mha": 300, "gqa": 200, "mqa": 180}
    assert sharing_raises_throughput(record(SEQS, RATES, bytes_of=small)).verdict == "fails"


def test_the_ledger_calls_it():
    claim = load_ledger().get("gqa-massive")
    assert judge(claim, record(SEQS, RATES)).verdict == "holds"
