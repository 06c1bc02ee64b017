"""A step is its products and a rest; formats are compared by the products."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_examples import manifest, samples

from inferlab.errors import UserError
from inferlab.quantcost import (
    KernelLaw,
    RestLaw,
    crossover_batch_size,
    eta_ratio,
    fit_kernel,
    fit_rest,
    laws_of,
    median_error,
    pareto,
    rest_of,
    speedup,
    speedups,
    step_s,
)
from inferlab.records import CaseInfo, Record

ROWS = (1, 3, 6, 12, 24)
PLAIN = KernelLaw(8e-3, 4e-4, False)
FAST = KernelLaw(4e-3, 2e-3, True)
seconds = st.floats(1e-5, 1.0)


@given(seconds, seconds, st.booleans())
def test_a_law_is_found_again_from_its_own_times(read_s, row_s, overlaps):
    law = KernelLaw(read_s, row_s, overlaps)
    times = [law.seconds(rows) for rows in ROWS]
    found = fit_kernel(ROWS, times)
    again = [found.seconds(rows) for rows in ROWS]
    # A turning point between two probes is met by neither form; the fit stays near the points.
    assert np.allclose(again, times, rtol=0.35)


def test_the_form_is_decided_by_the_data():
    for law in (PLAIN, FAST):
        found = fit_kernel(ROWS, [law.seconds(rows) for rows in ROWS])
        assert found.overlaps is law.overlaps
        assert found.read_s == pytest.approx(law.read_s, rel=1e-6)
        assert found.row_s == pytest.approx(law.row_s, rel=1e-6)


def test_points_may_come_in_any_order():
    rows = (24, 1, 6)
    assert fit_kernel(rows, [FAST.seconds(r) for r in rows]) == fit_kernel(
        sorted(rows), [FAST.seconds(r) for r in sorted(rows)]
    )


def test_the_rest_is_what_products_do_not_explain():
    rest = RestLaw(2e-3, 1e-4, 3e-8)
    shapes = [(1, 41), (7, 41), (1, 331), (5, 211)]
    times = [PLAIN.seconds(b) + rest.seconds(b, s) for b, s in shapes]
    found = fit_rest(*zip(*shapes, strict=True), times, PLAIN)
    assert found.step_s == pytest.approx(rest.step_s)
    assert found.row_s == pytest.approx(rest.row_s)
    assert found.token_s == pytest.approx(rest.token_s)


@given(seconds, seconds, seconds, seconds, st.booleans(), st.booleans())
def test_beyond_the_crossover_the_variant_loses_and_just_before_it_does_not(a, b, c, d, e, f):
    baseline, variant = KernelLaw(a, b, e), KernelLaw(c, d, f)
    turn = crossover_batch_size(baseline, variant)
    turns = [1.0, *(law.turning_rows for law in (baseline, variant) if law.overlaps)]
    lost = all(variant.seconds(max(r, 1)) > baseline.seconds(max(r, 1)) for r in turns)
    if lost:
        assert turn == 1.0
    elif math.isinf(turn):
        assert variant.seconds(1e9) <= baseline.seconds(1e9) * (1 + 1e-9)
    else:
        assert variant.seconds(turn) == pytest.approx(baseline.seconds(turn), rel=1e-6)
        for rows in (turn * 1.01, turn * 10):
            assert variant.seconds(rows) >= baseline.seconds(rows) * (1 - 1e-9)


def test_a_crossover_by_hand():
    # 8 + 0.4 B = 2 B: B = 5
    assert crossover_batch_size(PLAIN, FAST) == pytest.approx(5.0)
    assert crossover_batch_size(PLAIN, KernelLaw(9e-3, 1e-3, False)) == 1.0
    assert crossover_batch_size(PLAIN, KernelLaw(4e-3, 3e-4, False)) == math.inf
    # dear to read and cheap to compute: a loss at any batch size that matters
    assert crossover_batch_size(PLAIN, KernelLaw(1.0, 1e-9, False)) == 1.0


def test_the_rest_hides_a_gain_and_never_turns_it():
    small, large = RestLaw(0, 0, 0), RestLaw(1e-2, 0, 0)
    assert speedup(PLAIN, FAST, small, 1, 1) == pytest.approx(8.4 / 4)
    assert 1 < speedup(PLAIN, FAST, large, 1, 1) < 8.4 / 4
    assert speedup(PLAIN, FAST, large, 16, 1) < 1
    assert step_s(PLAIN, large, 1, 1) == pytest.approx(18.4e-3)
    assert eta_ratio(2.0, 2.0) == 1.0


def quant_record():
    cases, rows = {}, []
    for variant, law in (("bfloat16", PLAIN), ("int8", FAST)):
        for m in ROWS:
            name = f"products/tiny/{variant}/m{m}"
            cases[name] = CaseInfo(
                params={"model": "tiny", "variant": variant, "rows": m}, block="products"
            )
            rows += [(name, "products_s", law.seconds(m), r, "ok") for r in range(3)]
    rest = RestLaw(2e-3, 1e-4, 0.0)
    for b, s in ((1, 41), (7, 41), (1, 331)):
        name = f"rest/tiny/b{b}-s{s}"
        params = {"model": "tiny", "batch_size": b, "context_len": s}
        cases[name] = CaseInfo(params=params, block="rest")
        rows += [(name, "tpot_s", PLAIN.seconds(b) + rest.seconds(b, s), r, "ok") for r in range(3)]
    for variant, law in (("bfloat16", PLAIN), ("int8", FAST), ("peer", PLAIN)):
        for b in (1, 16):
            name = f"cells/tiny/{variant}/b{b}-s64"
            expected = step_s(law, rest, b, 64)
            cases[name] = CaseInfo(
                params={"model": "tiny", "variant": variant, "batch_size": b, "context_len": 64},
                predicted={} if variant == "peer" else {"tpot_s": expected}, block="cells",
            )  # fmt: skip
            rows += [(name, "tpot_s", expected * 1.1, r, "ok") for r in range(3)]
    return Record(manifest(cases=cases), samples(rows))


def test_laws_and_speedups_come_from_a_record():
    record = quant_record()
    laws = laws_of(record, "tiny")
    assert laws["int8"].row_s == pytest.approx(FAST.row_s)
    assert rest_of(record, "tiny", laws["bfloat16"]).step_s == pytest.approx(2e-3)
    found = speedups(record)
    assert [(r["variant"], r["batch_size"]) for r in found] == [
        ("int8", 1), ("peer", 1), ("int8", 16), ("peer", 16),
    ]  # fmt: skip
    assert found[0]["median"] > 1 > found[2]["median"]
    assert math.isnan(found[1]["error_ratio"])
    assert median_error(found) == pytest.approx(0, abs=1e-9)


def test_a_point_joins_the_speed_of_a_kernel_and_the_quality_of_its_codes():
    record = quant_record()
    cases, rows = dict(record.manifest.cases), record.samples.values.tolist()
    for method, loss in (("rtn", 0.003), ("gptq", 0.002)):
        name = f"quality/rotated/int8/{method}"
        cases[name] = CaseInfo(
            params={"copy": "rotated", "format": "int8", "method": method, "model": "tiny"}
        )
        rows.append((name, "kld_mean_nats", loss, 0, "ok"))
    found = pareto(Record(manifest(cases=cases), samples(rows)), "tiny", 64)
    assert [(p["name"], p["batch_size"], p["loss"]) for p in found] == [
        ("int8", 1, 0.003), ("int8", 16, 0.003),
    ]  # fmt: skip
    assert found[0]["speedup"] > 1 > found[1]["speedup"]


def test_too_little_is_refused():
    with pytest.raises(UserError, match="needs 2 measured points"):
        fit_kernel([1], [1.0])
    with pytest.raises(UserError, match="needs 3 measured points"):
        fit_rest([1, 2], [3, 4], [1.0, 2.0], PLAIN)
    with pytest.raises(UserError, match="above zero"):
        fit_kernel([1, 2], [1.0, 0.0])
    with pytest.raises(UserError, match="no cell was predicted"):
        median_error([])
