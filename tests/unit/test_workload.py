"""Workloads repeat from their seed, and their arrivals are what they claim."""

import numpy as np
import pytest

from inferlab.errors import UserError
from inferlab.workload import (
    burst_times,
    constant_times,
    gamma_times,
    poisson_arrivals,
    poisson_times,
    scheduled_at,
    unequal_batch,
    uniform_batch,
    with_shared_prefix,
)


def test_a_seed_draws_the_same_batch_again():
    assert uniform_batch(1000, 4, 16, 8, seed=3) == uniform_batch(1000, 4, 16, 8, seed=3)
    assert uniform_batch(1000, 4, 16, 8, seed=3) != uniform_batch(1000, 4, 16, 8, seed=4)


def test_shapes_and_vocabulary():
    batch = uniform_batch(50, 3, 7, 5)
    assert batch.batch_size == 3 and {spec.prompt_len for spec in batch.requests} == {7}
    assert {spec.output_len for spec in batch.requests} == {5}
    ids = [token for spec in batch.requests for token in spec.prompt_token_ids]
    assert min(ids) >= 0 and max(ids) < 50 and all(type(token) is int for token in ids)


def test_a_larger_batch_begins_with_the_smaller_one():
    small, large = uniform_batch(1000, 2, 8, 4), uniform_batch(1000, 5, 8, 4)
    assert large.requests[:2] == small.requests


def test_unequal_batch():
    batch = unequal_batch(100, [3, 1, 9], [4, 5, 6])
    assert [spec.prompt_len for spec in batch.requests] == [3, 1, 9]
    assert [spec.output_len for spec in batch.requests] == [4, 5, 6]


def test_poisson_arrivals_have_the_rate_and_exponential_gaps():
    times = poisson_times(20_000, 5.0, seed=1)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert (gaps >= 0).all()
    workload = poisson_arrivals(uniform_batch(10, 6, 2, 1, seed=9), 5.0)
    due = [spec.scheduled for spec in workload.requests]
    assert due == sorted(due) and due == poisson_times(6, 5.0, seed=9).tolist()


def test_constant_times():
    assert constant_times(3, 2.0).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: uniform_batch(100, 0, 4, 4),
        lambda: uniform_batch(100, 1, 0, 4),
        lambda: uniform_batch(100, 1, 4, 0),
        lambda: uniform_batch(0, 1, 4, 4),
        lambda: uniform_batch(100, 1, 4, 4, seed=-1),
        lambda: uniform_batch(100, True, 4, 4),
        lambda: unequal_batch(100, [], 4),
        lambda: unequal_batch(100, [1, 2], [4]),
        lambda: poisson_times(3, 0.0),
        lambda: constant_times(3, float("nan")),
        lambda: scheduled_at(uniform_batch(100, 2, 4, 4), [1.0]),
        lambda: scheduled_at(uniform_batch(100, 2, 4, 4), [1.0, 0.5]),
        lambda: scheduled_at(uniform_batch(100, 2, 4, 4), [-1.0, 0.5]),
    ],
)
def test_impossible_workloads_are_refused(make):
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_arrivals_have_the_rate_and_the_cv(cv):
    gaps = np.diff(gamma_times(50_000, 5.0, cv, seed=2))
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_bursts_have_the_rate_and_two_paces():
    times = burst_times(200_000, 10.0, burst_ratio=8.0, burst_share=0.1, burst_s=5.0, seed=1)
    assert times.size / times[-1] == pytest.approx(10, rel=0.05)
    seconds = np.bincount(times.astype(int))
    calm, burst = 10 / 1.7, 80 / 1.7
    assert np.median(seconds) == pytest.approx(calm, rel=0.2)
    assert np.percentile(seconds, 97) == pytest.approx(burst, rel=0.2)
    assert (np.diff(times) >= 0).all() and times.size == 200_000
    assert burst_times(50, 10.0, seed=3).tolist() == burst_times(50, 10.0, seed=3).tolist()


def test_a_shared_prefix_stands_before_every_prompt():
    batch = unequal_batch(50, [3, 4, 5], 2, seed=7)
    shared = with_shared_prefix(batch, 50, prefix_len=6, num_prefixes=2)
    prompts = [spec.prompt_token_ids for spec in shared.requests]
    assert [len(prompt) for prompt in prompts] == [9, 10, 11]
    assert prompts[0][:6] == prompts[2][:6] != prompts[1][:6]
    assert [p[6:] for p in prompts] == [spec.prompt_token_ids for spec in batch.requests]
    assert with_shared_prefix(batch, 50, 0) == batch


@pytest.mark.parametrize(
    "make",
    [
        lambda: gamma_times(3, 1.0, 0.0),
        lambda: gamma_times(3, 1.0, float("nan")),
        lambda: gamma_times(3, 1.0, 99.0),
        lambda: burst_times(3, 1.0, burst_ratio=0.5),
        lambda: burst_times(3, 1.0, burst_share=1.0),
        lambda: burst_times(3, 1.0, burst_s=0.0),
        lambda: burst_times(0, 1.0),
        lambda: with_shared_prefix(uniform_batch(10, 1, 1, 1), 10, -1),
        lambda: with_shared_prefix(uniform_batch(10, 1, 1, 1), 10, 3, num_prefixes=0),
    ],
)
def test_impossible_arrivals_and_prefixes_are_refused(make):
    with pytest.raises(UserError):
        make()
