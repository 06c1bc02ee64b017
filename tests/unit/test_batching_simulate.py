"""The emulated server of batches: known runs, theory, and what it refuses."""

import math
import statistics

import pytest

from inferlab.batching.queueing import bulk_queue, md1_wait_s
from inferlab.batching.simulate import StepTimes, mean_wait_range_s, simulate
from inferlab.errors import UserError
from inferlab.metrics import tpot_s, ttft_s
from inferlab.serving.batcher import NONE, dynamic, static
from inferlab.serving.waits import batches_of, waits_s
from inferlab.workload import Workload, poisson_arrivals, scheduled_at, unequal_batch, uniform_batch

TIMES = StepTimes({10: 0.02, 80: 0.09}, {1: 0.01, 8: 0.017})  # 10 ms + 1 ms a token; a row


def test_step_times_follow_straight_lines():
    assert TIMES.prefill_at(45) == pytest.approx(0.055)
    assert TIMES.prefill_at(160) == pytest.approx(0.17)  # beyond: the last line
    assert TIMES.step_at(4) == pytest.approx(0.013)
    assert TIMES.service_s(2, 10, 5) == pytest.approx(0.03 + 4 * 0.011)


def test_a_run_that_can_be_followed_by_hand():
    workload = scheduled_at(uniform_batch(50, 3, 10, 2, seed=0), [0.0, 0.01, 0.02])
    trace = simulate(workload, dynamic(8), TIMES)
    first, second = batches_of(trace)
    assert (first.start_s, first.size, second.size) == (0.0, 1, 2)
    assert first.end_s == pytest.approx(0.03)  # prefill 20 ms, one step of 10 ms
    assert second.start_s == pytest.approx(0.03)
    assert waits_s(trace) == pytest.approx([0.0, 0.02, 0.01])
    assert [ttft_s(r) for r in trace.requests] == pytest.approx([0.02, 0.05, 0.04])
    assert tpot_s(trace.requests[2]) == pytest.approx(0.011)
    assert trace.meta["label"] == "emulated"


def test_padding_costs_tokens_and_answers_end_one_by_one():
    workload = unequal_batch(50, [10, 40], [2, 4], seed=0)
    padded, packed = (simulate(workload, static(2), TIMES, how) for how in ("padded", "packed"))
    assert ttft_s(padded.requests[0]) == pytest.approx(0.09)
    assert ttft_s(packed.requests[0]) == pytest.approx(0.06)
    assert [r.output_tokens for r in padded.requests] == [2, 4]
    assert batches_of(padded)[0].end_s == padded.requests[1].events[-1][0]


def test_a_wait_limit_is_kept_and_a_static_batch_fills():
    workload = scheduled_at(uniform_batch(50, 3, 10, 1, seed=0), [0.0, 0.1, 5.0])
    held = simulate(workload, dynamic(8, 0.5), TIMES)
    assert waits_s(held) == pytest.approx([0.5, 0.4, 0.5])
    full = simulate(workload, static(2), TIMES)
    assert waits_s(full) == pytest.approx([0.1, 0.0, 0.0])  # the last is served as it is


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_long_runs_agree_with_theory(load):
    workload = uniform_batch(50, 6000, 10, 9, seed=0)
    alone = TIMES.service_s(1, 10, 9)
    rate = load / alone
    by_size = [TIMES.service_s(k, 10, 9) for k in range(1, 9)]
    due = poisson_arrivals(workload, rate, 5)
    expected = {
        NONE: md1_wait_s(rate, alone),
        dynamic(8): bulk_queue(rate, by_size).wait_s,
        static(8): bulk_queue(rate, by_size, full=True).wait_s,
    }
    for policy, wait in expected.items():
        found = statistics.fmean(waits_s(simulate(due, policy, TIMES)))
        assert found == pytest.approx(wait, rel=0.2), policy.name


def test_short_runs_spread_around_the_mean():
    workload = uniform_batch(50, 30, 10, 9, seed=0)
    alone = TIMES.service_s(1, 10, 9)
    low, high = mean_wait_range_s(workload, 0.8 / alone, NONE, TIMES, runs=60)
    assert 0 < low < md1_wait_s(0.8 / alone, alone) * 1.5
    assert high > 1.5 * low


@pytest.mark.parametrize(
    "call",
    [
        lambda: StepTimes({1: 0.1}, {1: 0.1, 2: 0.2}),
        lambda: StepTimes({1: 0.1, 2: math.nan}, {1: 0.1, 2: 0.2}),
        lambda: simulate(Workload((), 0), NONE, TIMES),
        lambda: simulate(uniform_batch(5, 1, 1, 1), NONE, TIMES, "folded"),
        lambda: mean_wait_range_s(uniform_batch(5, 1, 1, 1), 1.0, NONE, TIMES, runs=1),
    ],
)
def test_what_cannot_be_emulated(call):
    with pytest.raises(UserError):
        call()
