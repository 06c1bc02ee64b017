"""Folds of a record over its rounds: exponents, slopes and crossovers that were put in come out."""

import numpy as np
import pytest
from record_examples import cpu_machine, manifest

from inferlab import cachecost
from inferlab.models.config import get_config
from inferlab.records import CaseInfo, Record

LENGTHS = (64, 128, 256, 512)
CONFIG = get_config("smollm2-135m")


def record_of(laws, rounds=5):
    """A record whose kinds follow `laws` exactly, on a machine that drifts from round to round."""
    import pandas as pd

    cases, rows = {}, []
    for kind, law in laws.items():
        for length in LENGTHS:
            name = f"{kind}/{length}"
            cases[name] = CaseInfo(
                params={"cache": kind, "prompt_len": length},
                predicted={"tpot_s": law(length)}, block="context",
            )  # fmt: skip
            rows += [(name, "tpot_s", law(length) * (1 + r), r, "ok") for r in range(rounds)]
    samples = pd.DataFrame(rows, columns=["case", "metric", "value", "round", "status"])
    return Record(manifest(cases=cases, machine=cpu_machine()), samples)


def names(kind):
    return [f"{kind}/{length}" for length in LENGTHS]


def test_an_exponent_does_not_feel_the_drift_between_rounds():
    record = record_of({"none": lambda s: 1e-6 * s**1.3})
    found = cachecost.exponent(record, names("none"))
    assert (found.value, found.low, found.high) == pytest.approx((1.3, 1.3, 1.3))
    assert cachecost.predicted_exponent(record, names("none")) == pytest.approx(1.3)


def test_a_slope_is_the_median_over_rounds():
    record = record_of({"static": lambda s: 0.01 + 2e-6 * s})
    assert cachecost.slope(record, names("static")).value == pytest.approx(2e-6 * 3)


def test_a_crossover_is_where_the_lines_meet():
    record = record_of({"static": lambda s: 0.01 + 1e-6 * s, "none": lambda s: 0.005 + 5e-4 * s})
    found = cachecost.crossover(record, names("static"), names("none"))
    assert found.value == pytest.approx(0.005 / (5e-4 - 1e-6))


def test_flops_of_a_text_are_the_sum_of_its_steps():
    one, three = cachecost.total_flops(CONFIG, "static", (1, 3))
    steps = [cachecost.step_cost(CONFIG, "bfloat16", "static", 1, s).flops for s in (1, 2, 3)]
    assert one == steps[0]
    assert three == pytest.approx(sum(steps))


def test_recomputing_grows_about_one_power_faster():
    laws = {
        kind: np.polyfit(np.log(LENGTHS), np.log(cachecost.total_flops(CONFIG, kind, LENGTHS)), 1)
        for kind in ("none", "static")
    }
    assert 0.9 < laws["none"][0] - laws["static"][0] < 1.1
