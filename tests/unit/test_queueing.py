"""Waits by theory: known values, limits, bounds, and agreement between independent ways."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.batching.queueing import (
    bulk_queue,
    capacity_req_per_s,
    fill_wait_s,
    hold_wait_s,
    inoue_latency_bound_s,
    md1_wait_s,
    mg1_wait_s,
    utilization,
    waits_in_line_s,
)
from inferlab.errors import UserError

FIXED_S, PER_REQUEST_S = 0.1, 0.02


def services(size):
    return [FIXED_S + PER_REQUEST_S * k for k in range(1, size + 1)]


def test_known_values():
    assert md1_wait_s(5, 0.1) == pytest.approx(0.05)  # rho 1/2: half a service
    assert md1_wait_s(9, 0.1) == pytest.approx(0.45)
    assert md1_wait_s(10, 0.1) == math.inf
    assert utilization(5, 0.1) == pytest.approx(0.5)


def test_variance_of_the_service_costs_one_plus_its_squared_variation():
    mixed = [0.05, 0.05, 0.05, 0.25]
    ratio = np.var(mixed) / np.mean(mixed) ** 2
    assert mg1_wait_s(5, mixed) == pytest.approx((1 + ratio) * md1_wait_s(5, 0.1))


def test_lindley_over_many_arrivals_is_pollaczek_khinchine():
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / 6, 200_000))
    drawn = rng.choice([0.05, 0.15], 200_000)
    waits = waits_in_line_s(arrivals, drawn)
    assert waits.mean() == pytest.approx(mg1_wait_s(6, [0.05, 0.15]), rel=0.05)
    fixed = waits_in_line_s(arrivals, lambda i: 0.1)
    assert fixed.mean() == pytest.approx(md1_wait_s(6, 0.1), rel=0.05)


@given(load=st.floats(0.05, 0.95))
def test_batches_of_one_are_m_d_1(load):
    found = bulk_queue(load / 0.1, [0.1])
    assert found.wait_s == pytest.approx(md1_wait_s(load / 0.1, 0.1), rel=1e-3)
    assert found.utilization == pytest.approx(load, rel=1e-3)
    assert found.batch_size == pytest.approx(1)


def test_full_batches_wait_at_least_until_they_are_full():
    for rate in (0.5, 5, 20):
        found = bulk_queue(rate, services(8), full=True)
        assert found.wait_s >= fill_wait_s(rate, 8) - 1e-6
        assert found.batch_size == pytest.approx(8)
        assert found.utilization == pytest.approx(rate / 8 * services(8)[-1], rel=1e-3)
    assert bulk_queue(0.5, services(8), full=True).wait_s == pytest.approx(fill_wait_s(0.5, 8))


def test_dynamic_batches_are_small_at_low_load_and_full_at_high():
    low, high = bulk_queue(0.01, services(8)), bulk_queue(30, services(8))
    assert low.batch_size == pytest.approx(1, abs=0.01)
    assert low.wait_s < 0.01 * services(1)[0]
    assert high.batch_size > 7
    assert high.batch_size_seen >= high.batch_size


def test_an_overloaded_server_has_no_mean_wait():
    assert capacity_req_per_s(services(8)) == pytest.approx(8 / services(8)[-1])
    assert bulk_queue(31, services(8)).wait_s == math.inf
    assert bulk_queue(31, services(8), full=True).wait_s == math.inf
    cliff = [1.0, 1.1, 3.0]  # a line that is long enough makes every batch a slow one
    assert capacity_req_per_s(cliff) == 1.0
    assert bulk_queue(1.2, cliff).wait_s == math.inf


@pytest.mark.parametrize("rate", [1, 5, 10, 20, 30, 40])
def test_inoues_bound_holds_and_is_tight(rate):
    found = bulk_queue(rate, services(128))
    exact = found.wait_s + FIXED_S + PER_REQUEST_S * found.batch_size_seen
    bound = inoue_latency_bound_s(rate, FIXED_S, PER_REQUEST_S)
    assert exact <= bound * (1 + 1e-6)
    assert bound < 1.1 * exact
    assert inoue_latency_bound_s(50, FIXED_S, PER_REQUEST_S) == math.inf


def test_a_batch_held_open_waits_for_nobody_at_low_load():
    assert hold_wait_s(1e-6, 0.5) == pytest.approx(0.5)
    assert hold_wait_s(4, 0.5) == pytest.approx((0.5 + 4 * 0.125) / 3)
    rng = np.random.default_rng(1)  # batches one after the other, the server always idle
    opened = [rng.exponential(1 / 4, 40).cumsum() for _ in range(3000)]
    joined = [times[times < 0.5] for times in opened]
    waited = sum(0.5 + (0.5 - times).sum() for times in joined)
    assert waited / sum(1 + len(times) for times in joined) == pytest.approx(
        hold_wait_s(4, 0.5), rel=0.03
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: md1_wait_s(0, 0.1),
        lambda: md1_wait_s(1, -0.1),
        lambda: mg1_wait_s(1, []),
        lambda: bulk_queue(1, [0.1, math.nan]),
        lambda: bulk_queue(math.inf, [0.1]),
        lambda: fill_wait_s(1, 0),
        lambda: hold_wait_s(1, -1),
        lambda: inoue_latency_bound_s(1, 0.1, 0),
    ],
)
def test_what_no_queue_can_have(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
