"""The launch part of the claim about fusing: judged on rungs that start fewer operators."""

import pytest
from record_examples import manifest, samples

from inferlab.claims.graphs import fewer_launches_are_faster
from inferlab.records import CaseInfo, Record


def record(*rungs):
    """Rungs (name, before, host_s, tpot_s) of one ladder."""
    cases, rows = {}, []
    for name, before, host_s, seconds in rungs:
        cases[name] = CaseInfo(
            params={"rung": name, "before": before, "model": "m"},
            predicted={"host_s": host_s, "tpot_s": seconds}, block="ladder",
        )  # fmt: skip
        rows += [(name, "tpot_s", seconds * (1 + r / 50), r, "ok") for r in range(5)]
    return Record(manifest(cases=cases), samples(rows))


BASE = ("fixed", "", 4e-3, 0.010)


def test_a_rung_that_starts_less_and_is_faster_holds():
    verdict = fewer_launches_are_faster(record(BASE, ("graph", "fixed", 1e-3, 0.006)))
    assert verdict.verdict == "holds"
    assert verdict.where == "faster: graph against fixed, m (estimate saves 3.00 ms a step)"
    name = "graph against fixed, m"
    assert verdict.evidence[f"speed-up, {name}"].value == pytest.approx(10 / 6)
    assert verdict.evidence[f"saved / host time saved, {name}"].value == pytest.approx(1.04 * 4 / 3)


@pytest.mark.parametrize(
    ("rungs", "word"),
    [
        ((("graph", "fixed", 1e-3, 0.012),), "fails"),
        ((("graph", "fixed", 1e-3, 0.010),), "fails"),  # no difference is not faster
        ((("graph", "fixed", 1e-3, 0.006), ("kernels", "graph", 1e-4, 0.007)), "holds only where"),
        ((("packed", "fixed", 4e-3, 0.005),), "untested"),  # nothing fewer is started
        ((("graph", "absent", 1e-3, 0.005),), "untested"),
    ],
)
def test_what_rungs_decide(rungs, word):
    assert fewer_launches_are_faster(record(BASE, *rungs)).verdict == word
