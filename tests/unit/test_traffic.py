"""Traffic of one mean rate and one mean length, in other shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.lengths import Lengths, constant
from inferlab.underload import traffic


@pytest.mark.parametrize("family", traffic.FAMILIES)
@pytest.mark.parametrize("count", [30, 400])
def test_every_rung_asks_for_the_same_at_the_same_rate(family, count):
    ladder = traffic.ladder(family, count, 5.0, 32, 1000, seed=1)
    assert list(ladder) == list(traffic.FAMILIES[family])
    service = np.mean(traffic.service_lengths(family, count, 32, 1), axis=0)
    for work in ladder.values():
        times = traffic.times_of(work)
        assert work.batch_size == count and times[0] == 0
        assert times[-1] == pytest.approx((count - 1) / 5.0)
        means = np.mean(traffic.lengths_of(work), axis=0)
        assert means == pytest.approx(service, rel=1e-9)


def test_rungs_get_rougher():
    ladder = traffic.ladder("conv", 400, 5.0, 32, 1000, seed=1)
    spread = {}
    for name, work in ladder.items():
        gaps = np.diff(traffic.times_of(work))
        prompts = np.array(traffic.lengths_of(work))[:, 0]
        spread[name] = (gaps.std() / gaps.mean(), prompts.std() / prompts.mean())
    assert spread["constant-even"][0] == pytest.approx(0, abs=1e-9)
    assert 0.8 < spread["constant-poisson"][0] < 1.2
    for name in ("constant-even", "constant-poisson"):  # two neighbouring numbers, mixed
        whole = {one.prompt_len for one in traffic.lengths_of(ladder[name])}
        assert max(whole) - min(whole) <= 1 and spread[name][1] < 0.02
    assert spread["conv-poisson"][1] > 0.6
    assert spread["lognormal-poisson"][1] == pytest.approx(spread["conv-poisson"][1], rel=0.4)
    assert spread["conv-bursts"][0] > 1.15


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 60)), min_size=20, max_size=60))
def test_lengths_are_stretched_to_a_mean(pairs):
    found = traffic.with_means([Lengths(*pair) for pair in pairs], 40.0, 8.0)
    assert min(map(min, found)) >= 1
    assert np.mean(found, axis=0) == pytest.approx((40.0, 8.0), rel=0.05)


def test_few_prompts_take_turns():
    work = traffic.workload_of(constant(6, 3).sample(7, 0), 50, 1, distinct=2)
    prompts = [spec.prompt_token_ids for spec in work.requests]
    assert prompts[0] == prompts[2] == prompts[6] != prompts[1] and len(set(prompts)) == 2
    assert len({spec.id for spec in work.requests}) == 7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: traffic.service_lengths("poetry", 3, 1, 0), "known: conv, code"),
        (lambda: traffic.service_lengths("conv", 3, 0.5, 0), "1 or more"),
        (lambda: traffic.rung_lengths("conv", "odd-even", [Lengths(1, 1)], 0), "unknown traffic"),
        (lambda: traffic.workload_of([Lengths(1, 1), Lengths(2, 1)], 9, 0, 1), "one length"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
