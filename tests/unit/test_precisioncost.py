"""A format is its products, layers and head apart, and a rest; records say which phase it helps."""

import math

import pytest
from record_examples import manifest, samples

from inferlab import precisioncost as pc
from inferlab.errors import UserError
from inferlab.hardware.datasheets import DATASHEETS
from inferlab.models.config import get_config
from inferlab.models.cost import decode_cost, prefill_cost
from inferlab.precisioncost import PhaseLaws, RowsCurve
from inferlab.quantcost import RestLaw
from inferlab.records import CaseInfo, Record

MODEL = "smollm2-135m"


def line(read_s, row_s):
    return RowsCurve((1, 48), (read_s + row_s, read_s + 48 * row_s))


LAWS = {
    "bfloat16": PhaseLaws(line(6e-3, 1e-4), line(1e-3, 2e-5)),
    "w8a8": PhaseLaws(line(3e-3, 5e-5), line(1e-3, 2e-5)),
}
RESTS = {"prefill": RestLaw(2e-3, 1e-5, 1e-8), "decode": RestLaw(2e-3, 1e-4, 1e-7)}
H200, LARGE = DATASHEETS["h200"], get_config("llama-3.1-8b")
SHAPES = ((1, 41), (7, 41), (1, 331))


def record(extra_cases=None, extra_rows=()):
    """Products, rests and cells whose times follow LAWS and RESTS exactly, three rounds each."""
    cases, rows = {}, []

    def add(name, block, params, metric, seconds, predicted=None):
        cases[name] = CaseInfo(
            params={"model": MODEL, **params}, predicted=predicted or {}, block=block
        )
        rows.extend((name, metric, seconds, number, "ok") for number in range(3))

    for variant, law in LAWS.items():
        for part in ("layers", "head"):
            for count in (1, 3, 12, 48):
                params = {"variant": variant, "part": part, "rows": count, "phase": "products"}
                name = f"products/{variant}/{part}/{count}"
                add(name, f"products-{MODEL}", params, "products_s",
                    getattr(law, part).seconds(count))  # fmt: skip
    for phase, metric in pc.METRICS.items():
        for block, shapes, variants in (
            ("rest", SHAPES, ("bfloat16",)),
            (phase, ((1, 128), (4, 128)), LAWS),
        ):
            for batch, length in shapes:
                for variant in variants:
                    seconds = getattr(LAWS[variant], f"{phase}_s")(RESTS[phase], batch, length)
                    params = {"variant": variant, "phase": phase, "batch_size": batch,
                              "context_len": length}  # fmt: skip
                    floors = {"memory_s": 1.0, "compute_s": 0.5 if phase == "decode" else 2.0}
                    add(f"{block}/{phase}/{variant}/b{batch}-s{length}", f"{block}-{MODEL}",
                        params, metric, seconds,
                        {metric: seconds, **(floors if variant == "bfloat16" else {})})  # fmt: skip
    cases |= extra_cases or {}
    return Record(manifest(cases=cases), samples([*rows, *extra_rows]))


def test_laws_and_rests_are_found_again():
    one = record()
    laws = pc.laws_of(one, MODEL)
    rests = pc.rests_of(one, MODEL, laws["bfloat16"])
    for variant, law in LAWS.items():
        for batch, length in ((2, 64), (16, 300)):
            assert laws[variant].decode_s(rests["decode"], batch, length) == pytest.approx(
                law.decode_s(RESTS["decode"], batch, length), rel=1e-3
            )
            assert laws[variant].prefill_s(rests["prefill"], batch, length) == pytest.approx(
                law.prefill_s(RESTS["prefill"], batch, length), rel=1e-3
            )


def test_a_curve_goes_through_its_points_and_on_with_its_last_slope():
    curve = RowsCurve((1, 4, 8), (2.0, 2.0, 4.0))
    assert [curve.seconds(n) for n in (1, 2, 4, 6, 8, 12)] == [2, 2, 2, 3, 4, 6]
    assert curve.row_s == 0.5
    assert RowsCurve((2,), (3.0,)).seconds(4) == 6.0
    assert RowsCurve((1, 2), (3.0, 2.9)).seconds(9) == pytest.approx(2.9)  # never below its end


def test_a_prefill_runs_its_head_over_one_row_a_sequence():
    law, nothing = LAWS["bfloat16"], RestLaw(0.0, 0.0, 0.0)
    assert law.prefill_s(nothing, 4, 128) == law.layers.seconds(512) + law.head.seconds(4)
    assert law.decode_s(nothing, 4, 128) == law.layers.seconds(4) + law.head.seconds(4)


def test_speedups_keep_the_phases_apart():
    one = record()
    for phase in pc.METRICS:
        rows = pc.speedups(one, phase)
        assert {row["variant"] for row in rows} == {"w8a8"} and len(rows) == 2
        assert all(row["median"] > 1 and row["error_ratio"] < 1e-9 for row in rows)


def test_bounds_are_counted_by_what_the_baseline_waits_for():
    one = record()
    assert pc.bound_counts(one, "w8a8", "prefill") == {"memory": (0, 0, 0), "compute": (2, 2, 0)}
    assert pc.bound_counts(one, "w8a8", "decode") == {"memory": (2, 2, 0), "compute": (0, 0, 0)}
    assert pc.bound_counts(one, "fp8-row", "decode")["memory"] == (0, 0, 0)


@pytest.mark.parametrize("variant", ["bfloat16", "float16"])
def test_on_paper_formats_of_equal_bytes_and_rate_are_equal(variant):
    for phase in pc.METRICS:
        assert pc.paper_speedup(LARGE, H200, variant, phase, 1, 2048) == 1


def test_on_paper_weight_only_helps_decode_alone_and_w8a8_both():
    def gain(variant, phase, batch=1):
        return pc.paper_speedup(LARGE, H200, variant, phase, batch, 2048)

    assert gain("int8", "prefill") == 1 < gain("int8", "decode") < 2
    assert 1.9 < gain("w8a8", "prefill") < 2 and gain("w8a8", "decode") == gain("int8", "decode")
    assert gain("autocast", "decode") == pytest.approx(0.25, abs=0.02)
    assert gain("w8a8", "decode", 256) < 1.2


@pytest.mark.parametrize(("phase", "step"), [("decode", decode_cost), ("prefill", prefill_cost)])
def test_products_and_attention_make_up_all_flops(phase, step):
    for batch, length in ((1, 7), (5, 300)):
        attention = 4 * length if phase == "decode" else 2 * length * (length + 1)
        attention *= batch * LARGE.q_size * LARGE.num_layers
        products = pc._product_flops(LARGE, phase, batch, length)
        assert products + attention == step(LARGE, "bfloat16", batch, length).flops


def test_an_unknown_format_is_refused():
    with pytest.raises(UserError, match="no paper model"):
        pc.paper_speedup(LARGE, H200, "int3", "decode", 1, 1)


def test_ranges_come_back_by_copy_and_rank():
    cases, rows = {}, []
    for kind, largest in (("plain", 90.0), ("rotated", 2.0)):
        name = f"ranges/{kind}/layers.0.mlp.down"
        cases[name] = CaseInfo(params={
            "kind": kind, "projection": "layers.0.mlp.down", "layer": 0, "part": "mlp.down",
            "phase": "ranges",
        }, block=f"ranges-{kind}")  # fmt: skip
        rows += [(name, "outlier_ratio", largest, 0, "ok"),
                 (name, "rank_0001_ratio", largest, 0, "ok"),
                 (name, "rank_0002_ratio", 1.5, 0, "ok")]  # fmt: skip
    one = record(cases, rows)
    found = pc.range_ratios(one, ("plain", "rotated", "smoothed"), "layers.0.mlp.down")
    assert found == {"plain": {1: 90.0, 2: 1.5}, "rotated": {1: 2.0, 2: 1.5}}
    table = pc.outliers(one)
    assert dict(zip(table["kind"], table["median"], strict=True)) == {"plain": 90, "rotated": 2}
    assert not any(math.isnan(value) for value in table["median"])


def test_quality_is_one_row_a_case_with_gaps_where_nothing_was_asked():
    cases = {
        f"quality/{key}": CaseInfo(
            params={"variant": key, "copy": "plain", "alpha": None, "emulated": key == "fp8-row"},
            block="quality",
        )
        for key in ("int8", "fp8-row")
    }
    rows = [(name, "kld_mean_nats", 0.01, 0, "ok") for name in cases]
    rows += [("quality/int8", "task_score", 0.5, 0, "ok")]
    found = pc.quality_table(record(cases, rows))
    assert list(found["emulated"]) == [False, True]
    assert found.loc["quality/int8", "task_score"] == 0.5
    assert math.isnan(found.loc["quality/fp8-row", "task_score"])
    assert pc.quality_table(record(), "short").empty
