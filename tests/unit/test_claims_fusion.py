"""The claim about fusion: decided by cells where launches dominate and cells where work does."""

import pytest
from record_examples import manifest, samples

from inferlab.claims import judge, load_ledger
from inferlab.claims.fusion import fusing_saves_launches_and_traffic, fusion_cells
from inferlab.records import CaseInfo, Record


def record(*specs, block="sizes"):
    """Cells (operation, size, launching_s, work_s, gain of the compiled variant)."""
    cases, rows = {}, []
    for operation, size, launching_s, work_s, gain in specs:
        for variant, seconds in (("eager", 0.01), ("compile", 0.01 / gain)):
            name = f"{operation}/{variant}/{size}"
            cases[name] = CaseInfo(
                params={"operation": operation, "variant": variant, "size": size, "batch_size": 1,
                        "model": "m", "dtype": "bfloat16"},
                predicted={"launching_s": launching_s, "work_s": work_s},
                block=block if variant == "eager" else "sizes",
            )  # fmt: skip
            rows += [(name, "time_s", seconds, r, "ok") for r in range(5)]
    return Record(manifest(cases=cases), samples(rows))


LAUNCHES, WORK = (9e-6, 1e-6), (9e-6, 1e-3)


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        ([("norm", 1, *LAUNCHES, 1.5), ("norm", 4096, *WORK, 3.0)], "holds"),
        ([("norm", 1, *LAUNCHES, 0.5), ("norm", 4096, *WORK, 3.0)], "holds only where"),
        ([("norm", 1, *LAUNCHES, 1.5), ("norm", 4096, *WORK, 0.9)], "holds only where"),
        ([("norm", 1, *LAUNCHES, 0.5), ("norm", 4096, *WORK, 0.9)], "fails"),
        ([("norm", 4096, *WORK, 3.0)], "untested"),
        ([], "untested"),
    ],
)
def test_what_cells_decide(cells, word):
    assert fusing_saves_launches_and_traffic(record(*cells)).verdict == word


def test_the_regime_says_where_and_by_what():
    verdict = fusing_saves_launches_and_traffic(
        record(("norm", 1, *LAUNCHES, 0.5), ("norm", 4096, *WORK, 3.0), ("rope", 64, *WORK, 0.8))
    )
    assert verdict.where == (
        "launches dominate: faster in 0 of 1 cells, slower in 1; moving and computing dominate: "
        "faster in 1 of 2 cells, slower in 1; slower somewhere: norm by compile, rope by compile"
    )
    assert verdict.evidence["gain, norm, compile, size 4096"].value == pytest.approx(3.0)


def test_a_baseline_of_another_block_does_not_count():
    assert not list(fusion_cells(record(("norm", 1, *LAUNCHES, 2.0), block="other")))


def test_the_ledger_judges_a_record_of_the_lab():
    found = record(("norm", 1, *LAUNCHES, 1.5), ("norm", 4096, *WORK, 3.0))
    assert judge(load_ledger().get("fusion-launch"), found).verdict == "holds"
