"""Workloads repeat from their seed, and their arrivals are what they claim."""

import numpy as np
import pytest

from inferlab.errors import UserError
from inferlab.workload import (
    constant_times,
    poisson_arrivals,
    poisson_times,
    scheduled_at,
    unequal_batch,
    uniform_batch,
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
