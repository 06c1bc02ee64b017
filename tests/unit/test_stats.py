"""Percentiles, intervals and ratios: known values, refusals, and properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.stats import (
    Estimate,
    NotEnoughSamples,
    fit_power_law,
    median_interval,
    paired_ratio,
    percentile,
    percentile_interval,
    requests_for_percentile,
)

finite = st.floats(-1e9, 1e9, allow_nan=False)
positive = st.floats(1e-6, 1e6)


@pytest.mark.parametrize(("failures", "needed"), [(0, 459), (1, 662), (2, 838), (5, 1307)])
def test_early_stopping_counts_of_mlperf(failures, needed):
    assert requests_for_percentile(99, failures=failures) == needed


def test_lower_percentiles_need_fewer_requests():
    counts = [requests_for_percentile(q) for q in (50, 90, 95, 99, 99.9)]
    assert counts == [7, 44, 90, 459, 4603]


@pytest.mark.parametrize("q", [0, 100, -1, float("nan")])
def test_percentile_rank_out_of_range_is_refused(q):
    with pytest.raises(UserError):
        requests_for_percentile(q)


def test_p99_is_refused_below_459_samples_and_says_how_many_it_needs():
    with pytest.raises(NotEnoughSamples, match="p99 needs at least 459 samples") as caught:
        percentile(range(458), 99)
    assert (caught.value.have, caught.value.needed) == (458, 459)
    assert percentile(range(459), 99) == pytest.approx(0.99 * 458)


def test_extremes_and_body_of_a_small_sample_are_not_refused():
    values = [3.0, 1.0, 2.0, 4.0]
    assert percentile(values, 0) == 1.0
    assert percentile(values, 100) == 4.0
    assert percentile(values, 50) == 2.5
    assert percentile(values, 90) == pytest.approx(3.7)
    with pytest.raises(NotEnoughSamples):
        percentile(values, 1)


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_bad_samples_are_refused(values):
    with pytest.raises(UserError):
        percentile(values, 50)


@given(
    st.lists(finite, min_size=1, max_size=60), st.lists(st.floats(2, 98), min_size=2, max_size=5)
)
def test_percentiles_are_monotone_and_within_the_sample(values, ranks):
    results = [percentile(values, q) for q in sorted(ranks)]
    slack = 1e-9 * max(1.0, max(abs(v) for v in values))
    assert all(b >= a - slack for a, b in zip(results, results[1:], strict=False))
    assert min(values) - slack <= results[0] and results[-1] <= max(values) + slack


@pytest.mark.parametrize(
    ("n", "low", "high"), [(300, 97.3, 100.0), (1000, 98.2, 99.6), (5000, 98.7, 99.3)]
)
def test_order_statistics_that_enclose_p99(n, low, high):
    interval = percentile_interval(n, 99)
    assert round(interval.low_q - 0.04, 1) <= low <= round(interval.low_q + 0.04, 1)
    assert round(interval.high_q, 1) == high


def test_interval_of_a_small_sample_admits_that_it_does_not_cover():
    assert percentile_interval(20, 99).coverage < 0.2
    assert percentile_interval(1000, 99).coverage >= 0.95


def test_interval_covers_the_true_percentile_as_often_as_it_says():
    rng = np.random.default_rng(1)
    interval = percentile_interval(1000, 99)
    samples = np.sort(rng.uniform(size=(2000, 1000)), axis=1)
    inside = (samples[:, interval.low_rank - 1] <= 0.99) & (
        samples[:, interval.high_rank - 1] > 0.99
    )
    assert inside.mean() == pytest.approx(interval.coverage, abs=0.015)


def test_median_interval_brackets_the_median_and_repeats_exactly():
    values = np.random.default_rng(0).normal(10, 1, 50)
    first, second = median_interval(values), median_interval(list(values))
    assert first == second
    assert first.low < first.value < first.high
    assert first.n == 50


def test_two_samples_have_no_interval_and_json_says_null():
    estimate = median_interval([1.0, 3.0])
    assert estimate.value == 2.0 and not estimate.has_interval
    assert estimate.to_dict() == {"value": 2.0, "low": None, "high": None, "n": 2}
    assert not estimate.half_width_ratio < 0.1  # a stopping rule must go on


def test_constant_samples_have_an_interval_of_width_zero():
    assert median_interval([2.0] * 7) == Estimate(2.0, 2.0, 2.0, 7)


def test_paired_ratio_cancels_drift_that_hits_both():
    drift = np.linspace(1, 3, 21)
    estimate = paired_ratio(10 * drift, 5 * drift)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("baseline", "variant", "words"),
    [([1.0, 2.0], [1.0], "same rounds"), ([0.0, 1.0], [1.0, 1.0], "zero"), ([], [], "no samples")],
)
def test_paired_ratio_refuses_what_is_not_paired(baseline, variant, words):
    with pytest.raises(UserError, match=words):
        paired_ratio(baseline, variant)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=12), st.floats(0.1, 10))
def test_paired_ratio_scales_with_the_variant(pairs, factor):
    baseline, variant = zip(*pairs, strict=True)
    plain = paired_ratio(baseline, variant)
    scaled = paired_ratio(baseline, [factor * v for v in variant])
    assert scaled.value == pytest.approx(factor * plain.value)


@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_power_law_is_recovered(exponent, coefficient):
    x = np.array([1.0, 2.0, 5.0, 40.0])
    fit = fit_power_law(x, coefficient * x**exponent)
    assert fit.exponent == pytest.approx(exponent, abs=1e-9)
    assert fit.coefficient == pytest.approx(coefficient)
    assert fit.predict(3.0) == pytest.approx(coefficient * 3.0**exponent)


@pytest.mark.parametrize(("x", "y"), [([1, 1], [1, 2]), ([0, 1], [1, 2]), ([1, 2], [1])])
def test_power_law_refuses_what_it_cannot_fit(x, y):
    with pytest.raises(UserError):
        fit_power_law(x, y)


def test_power_law_through_two_points_is_exact():
    fit = fit_power_law([1, 10], [2, 200])
    assert math.isclose(fit.exponent, 2.0) and fit.r2 == pytest.approx(1.0)
