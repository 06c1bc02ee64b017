"""A verdict follows from the record, never from the file that states the claim."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_examples import gpu_machine, manifest, samples

from inferlab.claims import PREDICATES, Claim, Ledger, Source, ledger_table, load_ledger
from inferlab.claims.ledger import judge
from inferlab.claims.predicates import (
    bound_by_phase,
    kv_outgrows_weights,
    needs_bandwidth_ratio,
)
from inferlab.datafile import DataError
from inferlab.paths import data_folder
from inferlab.records import CaseInfo, Record

CHAPTER_OF_PART = {"0x": "0", "1x": "1", "2x": "2", "3x": "3", "4x": "4", "5x": "5", "6x": "6"}


def record(cases, rows, **changes):
    return Record(manifest(cases=cases, **changes), samples(rows))


# -- the ledger --------------------------------------------------------------------------------


def test_the_ledger_is_whole_and_lies_in_the_right_files():
    ledger = load_ledger()
    assert len(ledger.claims) == 48 and set(ledger.sources) == set("TLSMP")
    for path in (data_folder() / "claims").glob("[0-9]x_*.yml"):
        text = path.read_text()
        inside = [c for c in ledger.claims if f"- id: {c.id}\n" in text]
        assert inside and {c.lab[0] for c in inside} == {CHAPTER_OF_PART[path.name[:2]]}
    assert all(claim.lab in claim.chapters for claim in ledger.claims)


def test_claims_of_the_written_chapters_have_predicates():
    ledger = load_ledger()
    written = {"01", "02", "10", "20", "21", "22", "26", "40", "41", "46"}
    for claim in ledger.claims:
        assert (claim.predicate is not None) == (claim.lab[:2] in written), claim.id


GOOD = "claims:\n  - {id: a, claim: x, source: [T], chapters: [02_roofline], lab: 02_roofline%s}\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (GOOD % ", verdict: holds", "claims.0.verdict: unknown key"),
        (GOOD % ", predicate: {name: __import__}", "no predicate '__import__'"),
        (GOOD % ", predicate: {name: bound_by_phase, params: {x: 1}}", "unexpected keyword"),
        (GOOD % ", predicate: {name: needs_bandwidth_ratio}", "missing a required"),
        (GOOD.replace("[T]", "[Z]") % "", "no source 'Z'"),
        (GOOD % "" + (GOOD % "").split("\n", 1)[1], "already in the ledger"),
        (GOOD % ", id: b", "appears twice"),
        (GOOD.replace("02_roofline", "../x") % "", "String should match"),
        ("claims: &a [*a]", "aliases are not allowed"),
        ("claims: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("{" * 5000, "recursion|expected|depth"),
        ("", "top level"),
    ],
)
def test_a_bad_ledger_is_one_clear_line(tmp_path, text, match):
    (tmp_path / "sources.yml").write_text("sources: {T: {title: x}}")
    (tmp_path / "0x_a.yml").write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        load_ledger(tmp_path)
    assert "0x_a.yml" in str(caught.value) and "\n" not in str(caught.value)


def test_rows_hold_a_verdict_for_every_device_with_a_record():
    ledger = load_ledger()
    cases, rows = kv_cases((8, 30.0, 10.0))
    cpu, gpu = (
        record(cases, rows, lab="20_kv_cache"),
        record(cases, rows, lab="20_kv_cache", device="nvidia-h200", machine=gpu_machine()),
    )
    table = {row.id: row for row in ledger_table([cpu, gpu], ledger)}
    row = table["kv-not-weights"]
    assert [d.device for d in row.verdicts] == ["cpu-example-2c", "nvidia-h200"]
    assert row.summary == "holds" and row.sources[0].startswith("A systems-level")
    assert table["amdahl-20-10x"].summary == "untested" and table["quant-1pct"].verdicts == ()


def test_an_invalid_record_and_impossible_numbers_say_nothing():
    claim = load_ledger().get("kv-not-weights")
    cases, rows = kv_cases((8, 30.0, 10.0))
    broken = record(cases, rows, status="invalid", reasons=["check failed: equality"])
    assert judge(claim, broken).verdict == "untested"
    zero = record(*phase_cases(("decode", 1, 1e-3, 1e-6, 0.0), ("prefill", 64, 1e-6, 1e-3, 0.0)))
    assert judge(load_ledger().get("memory-bound-not-compute"), zero).verdict == "untested"


def test_devices_that_disagree_are_not_averaged():
    claim = Claim(
        id="a", claim="x", source=["T"], chapters=["90_example"], lab="90_example",
        predicate={"name": "kv_outgrows_weights"},
    )  # fmt: skip
    big, small = (record(*kv_cases((8, kv, 10.0))) for kv in (30.0, 3.0))
    (row,) = ledger_table([big, small], Ledger((claim,), {"T": Source(title="t")}))
    assert row.summary == "differs by device"


# -- predicates --------------------------------------------------------------------------------


def phase_cases(*specs):
    """Cases (phase, swept value, memory_s, compute_s, measured_s)."""
    cases, rows = {}, []
    for phase, swept, memory_s, compute_s, measured_s in specs:
        name = f"{phase}/{swept}"
        swept_name, metric = {
            "decode": ("batch_size", "tpot_s"),
            "prefill": ("prompt_len", "ttft_s"),
        }[phase]
        cases[name] = CaseInfo(
            params={"phase": phase, swept_name: swept},
            predicted={"memory_s": memory_s, "compute_s": compute_s},
        )
        rows += [(name, metric, measured_s, index, "ok") for index in range(3)]
    return cases, rows


def test_decode_by_bandwidth_and_prefill_by_compute_holds():
    verdict = bound_by_phase(
        record(*phase_cases(("decode", 1, 8e-3, 1e-3, 1e-2), ("prefill", 512, 1e-3, 9e-2, 1e-1)))
    )
    assert verdict.verdict == "holds"
    shares = [round(e.value, 3) for e in verdict.evidence.values()]
    assert shares == [0.8, 0.9]


def test_the_boundary_is_named():
    verdict = bound_by_phase(
        record(
            *phase_cases(
                ("decode", 1, 8e-3, 1e-3, 1e-2),
                ("decode", 64, 8e-3, 9e-3, 1e-2),
                ("prefill", 8, 8e-3, 1e-3, 1e-2),
                ("prefill", 512, 8e-3, 9e-2, 1e-1),
            )
        )
    )
    assert verdict.verdict == "holds only where"
    assert verdict.where == (
        "decode is bandwidth-bound in 1 of 2 cases (batch_size up to 1); "
        "prefill is compute-bound in 1 of 2 cases (prompt_len from 512)"
    )


def test_overhead_is_neither_bound():
    slow = phase_cases(("decode", 1, 1e-4, 1e-5, 1.0), ("prefill", 8, 1e-5, 1e-4, 1.0))
    assert bound_by_phase(record(*slow)).verdict == "fails"


def test_without_floors_or_one_phase_nothing_is_claimed():
    assert bound_by_phase(record(*phase_cases(("decode", 1, 1.0, 2.0, 3.0)))).verdict == "untested"
    assert bound_by_phase(record(manifest().cases, samples().values.tolist())).verdict == "untested"


def test_one_case_may_carry_both_phases():
    info = CaseInfo(
        params={"batch_size": 1, "prompt_len": 64},
        predicted={
            "decode_memory_s": 8e-3, "decode_compute_s": 1e-4,
            "prefill_memory_s": 1e-3, "prefill_compute_s": 5e-2,
        },
    )  # fmt: skip
    rows = [("a", metric, value, r, "ok") for r in range(3)
            for metric, value in (("tpot_s", 1e-2), ("ttft_s", 6e-2))]  # fmt: skip
    assert bound_by_phase(record({"a": info}, rows)).verdict == "holds"


def kv_cases(*specs, context_len=1000, **params):
    """Cases (batch size, kv bytes, weight bytes)."""
    cases = {
        f"static/b{batch_size}": CaseInfo(
            params={
                "cache": "static", "context_len": context_len, "batch_size": batch_size, **params
            },
            predicted={"kv_bytes": kv, "weight_bytes": weights},
        )
        for batch_size, kv, weights in specs
    }  # fmt: skip
    return cases, [(name, "tpot_s", 0.1, 0, "ok") for name in cases]


@given(st.integers(1, 512), st.floats(1, 1e6), st.floats(1e6, 1e12))
def test_the_crossover_is_weights_over_bytes_per_token(batch_size, per_token, weights):
    kv = per_token * batch_size * 1000
    verdict = kv_outgrows_weights(record(*kv_cases((batch_size, kv, weights))))
    crossover, share = verdict.evidence.values()
    assert crossover.value == pytest.approx(weights / per_token)
    assert share.value == pytest.approx(kv / weights)
    assert verdict.verdict == ("holds" if kv > weights else "holds only where")


def test_a_device_that_cannot_hold_the_weights_twice_never_sees_it():
    cases, rows = kv_cases((1, 1e9, 100e9))
    verdict = kv_outgrows_weights(record(cases, rows, device="nvidia-h200", machine=gpu_machine()))
    assert verdict.verdict == "fails" and "100 GB" in verdict.where


def test_runs_without_a_cache_do_not_count():
    cases, rows = kv_cases((1, 1e9, 1e9), cache="none")
    assert kv_outgrows_weights(record(cases, rows)).verdict == "untested"


def test_measured_bytes_win_over_predicted_ones():
    cases, rows = kv_cases((1, 5.0, 10.0))
    rows += [("static/b1", "kv_bytes", 20.0, 0, "ok")]
    assert kv_outgrows_weights(record(cases, rows)).verdict == "holds"


def test_other_devices_stay_untested_but_the_need_is_computed():
    ratios = {"latency_ratio": 10, "throughput_ratio": 4}
    cases = {
        f"probe/{size}": CaseInfo(params={"working_set_bytes": size}) for size in (10**5, 10**9)
    }
    rows = [("probe/100000", "read_bytes_per_s", 9e11, 0, "ok")]
    rows += [("probe/1000000000", "read_bytes_per_s", 2e10, r, "ok") for r in range(3)]
    verdict = needs_bandwidth_ratio(record(cases, rows), **ratios)
    assert verdict.verdict == "untested" and "2.50× fewer requests in flight" in verdict.where
    needed = list(verdict.evidence.values())[1]
    assert needed.value == 2e11 and math.isclose(needed.low, 2e11)
    assert needs_bandwidth_ratio(record({}, []), **ratios).evidence == {}


def test_predicates_are_documented():
    assert all(function.__doc__ for function in PREDICATES.values())
