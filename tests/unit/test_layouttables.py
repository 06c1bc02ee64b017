"""Shares, slopes and gains come out of a record as they were put in."""

import pytest
from record_examples import manifest, samples

from inferlab import layouttables
from inferlab.records import CaseInfo, Record

LEVEL_S, SLOPES = 0.01, {"mha": 30e-6, "gqa": 10e-6}  # of a step; of a cached token of a sequence
LENGTHS = (100, 400, 1000)


def record():
    cases, rows = {}, []

    def add(name, params, values, predicted):
        cases[name] = CaseInfo(params=params, predicted=predicted, block=params["phase"])
        rows.extend((name, m, v * (1 + r / 50), r, "ok") for m, v in values.items()
                    for r in range(4))  # fmt: skip

    for layout, slope in SLOPES.items():
        for batch in (1, 2):
            for length in reversed(LENGTHS):
                params = {"phase": "context", "layout": layout, "family": layout,
                          "batch_size": batch, "context_len": length}  # fmt: skip
                step = {"tpot_s": LEVEL_S + batch * slope * length}
                add(f"context/{layout}/b{batch}-s{length}", params, step,
                    {"attention_share_ratio": 0.1})  # fmt: skip
        params = {"phase": "capacity", "layout": layout, "family": layout,
                  "batch_size": 3 if layout == "gqa" else 1, "context_len": 400}  # fmt: skip
        held = params["batch_size"] * 400 * (300 if layout == "gqa" else 900)
        rate = 2.0 * params["batch_size"]
        add(f"capacity/{layout}", params, {"output_tok_per_s": rate, "kv_bytes": held}, {})
    lost = {"phase": "context", "layout": "mha", "family": "mha", "batch_size": 1,
            "context_len": 9000}  # fmt: skip
    cases["context/mha/b1-s9000"] = CaseInfo(params=lost, predicted={}, block="context")
    rows.append(("context/mha/b1-s9000", "none", float("nan"), 0, "oom"))
    return Record(manifest(cases=cases), samples(rows))


def test_a_sweep_is_in_order_and_leaves_lost_cases_out():
    assert layouttables.swept(record(), "mha", 2) == [f"context/mha/b2-s{s}" for s in LENGTHS]
    assert len(layouttables.swept(record(), "mha")) == 3
    assert layouttables.layouts_of(record(), "context") == ["mha", "gqa"]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_slopes_are_of_one_sequence(batch_size):
    for layout, slope in SLOPES.items():
        found = layouttables.slope(record(), layout, batch_size)
        assert found.value == pytest.approx(slope, rel=0.05)


def test_shares_are_what_is_not_there_at_no_context():
    table = layouttables.attention_shares(record()).set_index(["layout", "context_len"])
    assert table.loc[("mha", 1000), "share"] == pytest.approx(0.03 / 0.04, rel=0.01)
    assert table.loc[("gqa", 100), "share"] == pytest.approx(0.001 / 0.011, rel=0.01)
    assert (table["predicted"] == 0.1).all()


def test_throughputs_have_bytes_and_gains():
    table = layouttables.throughputs(record()).set_index("layout")
    assert table["token_bytes"].to_dict() == pytest.approx({"mha": 900, "gqa": 300}, rel=0.05)
    assert table["gain"].to_dict() == pytest.approx({"mha": 1, "gqa": 3})
