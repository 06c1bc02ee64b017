"""From options to requests: the same plan is the same load, and what cannot be is refused."""

import numpy as np
import pytest

from inferlab.errors import UserError
from inferlab.load import plan as planning
from inferlab.load.plan import ARRIVALS, CannotPlan, LoadPlan, arrival_times, prepare


def plan(**changes):
    return LoadPlan(**{"model": "x", "rate_req_per_s": 10.0, "num_requests": 20, **changes})


def test_the_same_plan_is_the_same_load():
    assert prepare(plan()) == prepare(plan())
    assert prepare(plan()).workload != prepare(plan(seed=1)).workload
    other = prepare(plan().at_rate(20.0, seed=5)).workload
    assert (
        other.requests[0].prompt_token_ids != prepare(plan()).workload.requests[0].prompt_token_ids
    )


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_arrivals_have_the_rate(arrivals):
    times = arrival_times(plan(arrivals=arrivals, num_requests=20_000, arrival_cv=2.0))
    assert (np.diff(times) >= 0).all() and times.shape == (20_000,)
    # services pause long, bursts and clumps differ from draw to draw
    assert 20_000 / times[-1] == pytest.approx(10, rel=0.35)


def test_clumps_of_the_services_are_kept():
    cv = {}
    for name in ("azure-conv", "azure-code"):
        gaps = np.diff(arrival_times(plan(arrivals=name, num_requests=100_000)))
        cv[name] = gaps.std() / gaps.mean()
    assert cv["azure-conv"] == pytest.approx(1.094, rel=0.1)  # of the summary file
    assert cv["azure-code"] == pytest.approx(13.15, rel=0.3)


def test_a_duration_keeps_what_is_due_by_then():
    timed = prepare(plan(num_requests=None, duration_s=5.0)).workload
    assert timed.requests[-1].scheduled < 5.0 and 25 < timed.batch_size < 80
    closed = plan(rate_req_per_s=None, concurrency=2, num_requests=None, duration_s=1.0)
    assert prepare(closed).workload.batch_size == 200


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_arrivals_do_not_end_before_the_duration(arrivals):
    for seed in range(20):
        timed = plan(
            arrivals=arrivals, num_requests=None, duration_s=60.0, rate_req_per_s=100.0,
            arrival_cv=4.0, seed=seed,
        )  # fmt: skip
        times = arrival_times(timed)
        # the same draws, more of them: nothing is missing before the end
        many = arrival_times(plan(
            arrivals=arrivals, num_requests=100_000, rate_req_per_s=100.0, arrival_cv=4.0,
            seed=seed,
        ))  # fmt: skip
        assert times.tolist() == many[many < 60.0].tolist()


def test_a_duration_of_bursts_with_more_requests_than_one_load_has():
    with pytest.raises(CannotPlan, match="60 s at 1.66e.03 requests/s are more than 100,000"):
        for seed in range(9):
            arrival_times(plan(
                arrivals="bursts", num_requests=None, duration_s=60.0, rate_req_per_s=1660.0,
                seed=seed,
            ))  # fmt: skip
    with pytest.raises(CannotPlan, match="1 to 100,000 requests, not 102,000"):
        plan(num_requests=None, duration_s=60.0, rate_req_per_s=1700.0)


def test_no_more_events_than_a_trace_may_hold(monkeypatch):
    with pytest.raises(CannotPlan, match="100,000 requests of 64 tokens are more than the 5,000,0"):
        prepare(plan(num_requests=100_000))
    monkeypatch.setattr(planning, "MAX_EVENTS", 100)
    closed = plan(rate_req_per_s=None, concurrency=2, num_requests=None, duration_s=1.0)
    assert prepare(closed).workload.batch_size == 1  # 66 events each
    assert prepare(plan(num_requests=10, output_len=8)).workload.batch_size == 10


@pytest.mark.parametrize("lengths", ["lognormal", "azure-conv", "azure-code"])
def test_lengths_are_scaled_and_cut_to_the_context(lengths):
    made = prepare(plan(lengths=lengths, num_requests=300, length_scale=0.5, max_len=150))
    totals = [spec.prompt_len + spec.output_len for spec in made.workload.requests]
    assert max(totals) <= 150 and made.clipped > 0 and "lengths x 0.5" in made.mix
    assert min(spec.prompt_len for spec in made.workload.requests) >= 1


def test_a_preset_gives_its_vocabulary_and_its_context():
    made = prepare(plan(model="smollm2-135m", prompt_len=9000, num_requests=2))
    assert made.clipped == 2
    assert max(max(s.prompt_token_ids) for s in made.workload.requests) > 10_000
    small = prepare(plan(model="smollm2-135m", vocab_size=7)).workload
    assert max(max(s.prompt_token_ids) for s in small.requests) < 7


def test_prompts_share_their_prefixes():
    made = prepare(plan(shared_prefix_len=30, num_prefixes=2, prompt_len=10)).workload
    prompts = [spec.prompt_token_ids for spec in made.requests]
    assert {len(prompt) for prompt in prompts} == {40}
    assert len({prompt[:30] for prompt in prompts}) == 2
    assert prompts[0][:30] == prompts[2][:30] != prompts[1][:30]
    assert len({prompt[30:] for prompt in prompts}) == 20


def test_a_trace_of_ones_own(tmp_path):
    rows = "\n".join(f"{50 + i},{10 + i}" for i in range(30))
    (tmp_path / "mine.csv").write_text(f"ContextTokens,GeneratedTokens\n{rows}\n")
    made = prepare(plan(lengths=str(tmp_path / "mine.csv")))
    assert made.mix == "mine"
    assert all(50 <= spec.prompt_len < 80 for spec in made.workload.requests)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concurrency": 2}, "either a rate"),
        ({"rate_req_per_s": None}, "either a rate"),
        ({"rate_req_per_s": float("inf")}, "rate must be above 0"),
        ({"rate_req_per_s": None, "concurrency": 0}, "concurrency"),
        ({"arrivals": "tides"}, "unknown arrivals"),
        ({"num_requests": None}, "a number of requests or a duration"),
        ({"num_requests": 10**6}, "1 to 100,000"),
        ({"duration_s": -1}, "a duration lies"),
        ({"shared_prefix_len": -1}, "shared prefix"),
    ],
)
def test_impossible_plans_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        plan(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths": "short"}, "unknown lengths 'short'"),
        ({"lengths": "lognormal", "length_cv": 9.0}, "cv of lengths"),
        ({"length_scale": 0.0}, "factor of lengths"),
        ({"arrivals": "gamma", "arrival_cv": 0.0}, "cv must lie"),
        ({"as_text": True}, "need a tokenizer"),
        ({"shared_prefix_len": 99, "max_len": 100}, "leaves no room"),
        ({"num_requests": None, "duration_s": 1e-9}, "no request is due"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        prepare(plan(**changes))
