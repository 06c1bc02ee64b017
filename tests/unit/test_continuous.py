"""Lab 41 without a model: mixes, the law, step times, the emulated schedule, factors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY

from inferlab.continuous import ladder, law, mixes
from inferlab.continuous.cost import StepTimes, segments_cost
from inferlab.continuous.emulate import emulate, one_second_a_step
from inferlab.continuous.setting import Setting
from inferlab.continuous.tails import highest_percentile
from inferlab.errors import UserError
from inferlab.lengths import Lengths
from inferlab.models.cost import decode_cost, prefill_cost
from inferlab.roofline import Ceilings, predict_s
from inferlab.serving.scheduler import Segment, StepPlan

CONFIG = TINY["llama"]
PREFILL = Ceilings(1e9, 1e11, 3e-3, 2e-5)
DECODE = Ceilings(1e9, 1e11, 1e-3, 4e-5)
TIMES = StepTimes(CONFIG, "float32", PREFILL, DECODE)
ROOMY = Setting(store_tokens=4096, max_len=128)


@given(num=st.integers(4, 80), mean=st.floats(4, 40), cv=st.floats(0, 2.5), seed=st.integers(0, 99))
def test_a_spread_keeps_the_mean_and_the_longest(num, mean, cv, seed):
    found = mixes.spread_lengths(num, 7, mean, cv, 128, seed)
    outputs = [r.output_len for r in found]
    assert len(found) == num and all(r.prompt_len == 7 for r in found)
    assert sum(outputs) == pytest.approx(num * mean, abs=1.5)
    assert min(outputs) >= 1 and max(outputs) <= 128


def test_spreads_rise_and_a_cv_of_zero_is_constant():
    spreads = [mixes.cv_of(mixes.spread_lengths(400, 8, 30, cv, 2000)) for cv in (0, 0.5, 1, 2)]
    assert spreads[0] < 0.02
    assert spreads == sorted(spreads)
    assert spreads[1] == pytest.approx(0.5, rel=0.05)


def test_a_capped_exponential_has_the_mean_of_one():
    found = mixes.capped_exponential(1000, 512, 128, 128)
    mean = np.mean([r.output_len for r in found])
    assert mean == pytest.approx(128 * (1 - math.exp(-1)), rel=0.01)
    assert max(r.output_len for r in found) == 128


@pytest.mark.parametrize(
    "make",
    [
        lambda: mixes.spread_lengths(0, 8, 30, 1, 100),
        lambda: mixes.spread_lengths(8, 8, 30, -1, 100),
        lambda: mixes.spread_lengths(8, 8, 300, 1, 100),
        lambda: mixes.capped_exponential(8, 8, 0, 100),
        lambda: law.expected_longest([], 4),
        lambda: law.expected_longest([3], 0),
        lambda: Setting(store="heap"),
        lambda: Setting(store="maximum", store_tokens=100, max_len=128),
        lambda: emulate([], ROOMY, TIMES),
        lambda: emulate([Lengths(3, 3)], ROOMY, TIMES, [0.0, 1.0]),
        lambda: emulate([Lengths(200, 3)], ROOMY, TIMES),
        lambda: highest_percentile(0),
        lambda: ladder.ratio_of({frozenset(): 1.0, frozenset({"a"}): 0.0}),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_expected_longest_is_that_of_all_draws():
    lengths = [1, 4, 4, 9]
    every = [max(a, b) for a in lengths for b in lengths]
    assert law.expected_longest(lengths, 2) == pytest.approx(np.mean(every))
    assert law.expected_longest(lengths, 1) == pytest.approx(np.mean(lengths))


def test_the_law_has_its_limits():
    mix = mixes.spread_lengths(200, 8, 30, 1, 200)
    limit = law.longest_over_mean(mix, 8)
    assert law.expected_gain(mix, 8, 1.0, 0.0) == pytest.approx(limit)
    assert law.expected_gain(mix, 8, 0.0, 1.0) == pytest.approx(1)
    assert 1 < law.expected_gain(mix, 8, 1.0, 0.1, 5.0) < law.expected_gain(mix, 8, 1.0, 0.1)
    same = mixes.spread_lengths(200, 8, 30, 0, 200)
    assert law.expected_gain(same, 8, 1.0, 0.1) == pytest.approx(1)


def test_the_emulated_schedule_follows_the_law_on_a_long_line():
    mix = mixes.spread_lengths(800, 8, 20, 1, 100, seed=3)
    found = {
        policy: emulate(mix, Setting(policy=policy, store_tokens=8192, max_len=128),
                        one_second_a_step)
        for policy in ("static", "continuous")
    }  # fmt: skip
    ratio = found["static"].wall_s / found["continuous"].wall_s
    assert ratio == pytest.approx(law.longest_over_mean(mix, 8), rel=0.08)
    assert found["static"].wall_s == law.static_steps(mix, 8)
    assert found["continuous"].num_seqs > 7.5 > found["static"].num_seqs


REQUESTS = st.lists(
    st.builds(Lengths, st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=9
)


@settings(max_examples=60)
@given(
    requests=REQUESTS, policy=st.sampled_from(["static", "continuous"]),
    chunk=st.sampled_from([None, 3, 16]), store=st.sampled_from(["maximum", "paged"]),
)  # fmt: skip
def test_an_emulated_run_gives_everybody_their_tokens(requests, policy, chunk, store):
    setting = Setting(
        policy=policy, store=store, store_tokens=144, max_len=72, block_size=4, chunk_size=chunk,
        max_num_seqs=3,
    )  # fmt: skip
    found = emulate(requests, setting, TIMES)
    assert [r.output_tokens for r in found.trace.requests] == [r.output_len for r in requests]
    assert found.trace.meta["label"] == "emulated"
    assert max(step.num_decodes for step in found.steps) <= 3
    prompts = sum(r.prompt_len for r in requests)
    read = sum(step.num_prompt_tokens for step in found.steps)
    if found.num_preempted == 0 and chunk is None:
        assert read == prompts
    assert found.recomputed_tokens >= found.num_preempted


def test_arrivals_move_the_clock():
    found = emulate([Lengths(4, 2), Lengths(4, 2)], ROOMY, TIMES, [0.0, 5.0])
    assert found.trace.requests[1].scheduled == 5.0
    assert found.trace.requests[1].events[0][0] > 5.0


def plan(*segments):
    return StepPlan(tuple(Segment(None, *segment) for segment in segments))


def test_a_step_of_rows_is_a_decode_step_and_one_of_a_prompt_a_prefill():
    rows = plan(*[(39, 1, True)] * 5).segments
    assert segments_cost(CONFIG, "float32", rows) == decode_cost(CONFIG, "float32", 5, 40)
    prompt = plan((0, 33, True))
    assert segments_cost(CONFIG, "float32", prompt.segments) == prefill_cost(
        CONFIG, "float32", 1, 33
    )
    assert TIMES(plan(*[(39, 1, True)] * 5)) == pytest.approx(
        predict_s(decode_cost(CONFIG, "float32", 5, 40), DECODE, 5)
    )
    assert TIMES(prompt) == pytest.approx(
        predict_s(prefill_cost(CONFIG, "float32", 1, 33), PREFILL, 33)
    )


def test_chunks_cost_the_work_of_the_whole_and_the_weights_again():
    chunks = [segments_cost(CONFIG, "float32", plan(s).segments)
              for s in ((0, 16, False), (16, 16, False), (32, 1, True))]  # fmt: skip
    whole = segments_cost(CONFIG, "float32", plan((0, 33, True)).segments)
    assert sum(c.flops for c in chunks) == whole.flops
    assert sum(c.kv_write_bytes for c in chunks) == whole.kv_write_bytes
    assert sum(c.bytes for c in chunks) > 2.5 * whole.weight_bytes


def test_a_mixed_step_pays_the_larger_overhead_once_and_a_gather_for_what_has_a_past():
    mixed = plan((39, 1, True), (39, 1, True), (0, 16, False))
    both = TIMES(plan((39, 1, True), (39, 1, True))) + TIMES(plan((0, 16, False)))
    assert TIMES(plan((0, 16, False))) < TIMES(mixed) < both
    gathering = StepTimes(CONFIG, "float32", PREFILL, DECODE, gathers=True)
    copied = 2 * 80 * 2 * 2 * 16 * 4  # write and read again; keys, values, layers, width, float32
    assert gathering(mixed) - TIMES(mixed) == pytest.approx(copied / 1e9)


def test_step_parts_are_a_line_through_one_row_and_all():
    fixed_s, row_s = TIMES.step_parts(8, 40)
    for rows in (1, 8):
        assert fixed_s + rows * row_s == pytest.approx(TIMES(plan(*[(39, 1, True)] * rows)))


@given(st.lists(st.floats(0.1, 10), min_size=8, max_size=8))
def test_factors_multiply_back_in_every_order_and_on_average(values):
    cells = dict(zip(ladder.all_cells(), values, strict=True))
    ratio = ladder.ratio_of(cells)
    whole = ladder.whole(ratio)
    assert whole == pytest.approx(values[-1] / values[0])
    for found in (*ladder.by_order(ratio).values(), ladder.average_factors(ratio)):
        assert ladder.multiplies_to(found, whole) == pytest.approx(1)


def test_techniques_that_do_not_meet_have_one_factor_in_every_order():
    own = {"scheduler": 2.0, "store": 3.0, "kernels": 1.5}
    cells = {cell: math.prod(own[t] for t in cell) for cell in ladder.all_cells()}
    ratio = ladder.ratio_of(cells)
    assert ladder.average_factors(ratio) == pytest.approx(own) == ladder.alone(ratio)
    cells[frozenset(own)] *= 2  # together they are worth more than apart
    ratio = ladder.ratio_of(cells)
    assert ladder.multiplies_to(ladder.alone(ratio), ladder.whole(ratio)) == pytest.approx(0.5)


def test_tails_are_as_far_as_the_samples_reach():
    assert [highest_percentile(n) for n in (459, 458, 90, 89, 44, 5)] == [99, 95, 95, 90, 90, 50]
