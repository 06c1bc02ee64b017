"""Waste by policy: closed forms against counting, and an emulated server against the real one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_paged import decoder_of, paged, prompts_of

from inferlab import pagingcost
from inferlab.decoding.paged import run_paged
from inferlab.errors import UserError
from inferlab.kvcache.blocks import BlockManager
from inferlab.lengths import NAMES, Lengths, constant, load_mix
from inferlab.models.config import get_config
from inferlab.pagingcost import POLICIES, footprint
from inferlab.pagingserver import FirstFit, serve

REQUESTS = st.lists(
    st.builds(Lengths, st.integers(1, 40), st.integers(2, 30)), min_size=1, max_size=6
)


@given(requests=REQUESTS, policy=st.sampled_from(POLICIES), block_size=st.integers(1, 40))
def test_a_footprint_is_the_sum_over_all_steps(requests, policy, block_size):
    held = reserved = 0
    for prompt_len, output_len in requests:
        manager = BlockManager(100, block_size)
        manager.allocate(0, prompt_len)
        for _ in range(output_len - 1):
            manager.append(0)
            held += manager.num_tokens(0)
            reserved += {
                "maximum": 80,
                "known": prompt_len + output_len - 1,
                "power-of-two": min(prompt_len + (1 << (output_len - 1).bit_length()), 80),
                "paged": len(manager.block_table(0)) * block_size,
            }[policy]
    found = footprint(requests, policy, 80, block_size)
    assert (found.steps, found.held, found.reserved) == (
        sum(r.output_len - 1 for r in requests), held, reserved,
    )  # fmt: skip
    assert found.num_seqs(1000) == pytest.approx(1000 * found.steps / reserved)


@pytest.mark.parametrize("name", NAMES)
def test_half_a_block_a_sequence_is_a_good_estimate_on_real_lengths(name):
    requests = load_mix(name).sample(2000, seed=0)
    for block_size in (8, 16, 64, 256):
        found = footprint(requests, "paged", 16_384, block_size)
        by_hand = pagingcost.half_block_waste(found.mean_held, block_size)
        assert found.waste_ratio == pytest.approx(by_hand, rel=0.1)


def test_paging_gains_nothing_when_all_take_the_maximum():
    requests = constant(960, 65).sample(50, seed=0)
    waste = {p: footprint(requests, p, 1024, 16).waste_ratio for p in POLICIES}
    assert waste["known"] == waste["maximum"] < 0.04
    real = load_mix("azure-conv").sample(500, seed=0)
    assert footprint(real, "maximum", 16_384).waste_ratio > 0.8
    assert footprint(real, "paged", 16_384).waste_ratio < 0.01


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 16), st.integers(1, 9)), min_size=2, max_size=7),
    block_size=st.sampled_from([1, 4, 16]),
    spare=st.integers(0, 5),
)
def test_the_emulated_server_does_what_the_real_one_does(sizes, block_size, spare):
    requests = [Lengths(*size) for size in sizes]
    num_blocks = max(-(-(sum(r) - 1) // block_size) for r in requests) + spare
    decoder = decoder_of()
    cache = paged(decoder, len(requests), 40, block_size=block_size, num_blocks=num_blocks)
    prompts = prompts_of([r.prompt_len for r in requests])
    real = run_paged(decoder, prompts, [r.output_len for r in requests], cache)
    try:
        emulated = serve(requests, num_blocks * block_size, "paged", 40, block_size)
    except UserError as error:
        assert "no request ever waited" in str(error)
        assert real.num_preempted == 0
        return
    assert emulated.steps == len(real.batch_sizes)
    assert emulated.num_preempted == real.num_preempted
    assert emulated.recomputed_tokens == real.recomputed_tokens


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_server_runs_about_as_many_as_the_footprint_says(policy):
    requests = load_mix("azure-conv").sample(800, seed=2)
    budget = 100_000
    run = serve(requests, budget, policy, 8192)
    expected = footprint(requests, policy, 8192).num_seqs(budget * (1 - run.stranded_ratio))
    assert run.num_seqs == pytest.approx(expected, rel=0.15)
    assert run.waste_ratio == pytest.approx(footprint(requests, policy, 8192).waste_ratio, abs=0.03)
    assert (policy == "paged") or run.num_preempted == 0
    assert run.reserved_ratio + run.stranded_ratio <= 1 + 1e-9


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.data())
def test_first_fit_loses_no_position(sizes, data):
    store, placed = FirstFit(60), {}
    for size in sizes:
        start = store.place(size)
        assert (start is None) == (size > store.widest) or start is not None
        if start is not None:
            for other, length in placed.items():
                assert start + size <= other or other + length <= start
            placed[start] = size
        if placed and data.draw(st.booleans()):
            start = data.draw(st.sampled_from(sorted(placed)))
            store.release(start, placed.pop(start))
        assert store.num_free == 60 - sum(placed.values())
    for start, size in placed.items():
        store.release(start, size)
    assert store.widest == store.num_free == 60


def test_predicted_prices():
    config = get_config("llama-3.1-8b")
    assert pagingcost.gather_ratio() == 3
    assert pagingcost.table_ratio(config, "bfloat16", 16) == pytest.approx(1 + 4 / 8192)
    tokens = pagingcost.budget_tokens(config, "bfloat16", 80e9)
    assert tokens * 131_072 < 0.9 * 80e9 - 16e9 < (tokens + 1) * 131_072 + 1e8


def test_shortened_lengths_stay_at_least_one():
    assert pagingcost.shortened([Lengths(33, 1), Lengths(1, 32)], 16) == [(3, 1), (1, 2)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: footprint([Lengths(5, 5)], "hope", 80), "known: maximum, power-of-two"),
        (lambda: footprint([Lengths(5, 5)], "known", 8), "takes 9 positions and max_len is 8"),
        (lambda: footprint([Lengths(5, 1)], "known", 8), "answers of one token"),
        (lambda: footprint([], "known", 8), "one request"),
        (lambda: footprint([Lengths(5, 5)], "paged", 80, 0), "block_size must be"),
        (lambda: serve([Lengths(5, 5)], 100, "hope", 80), "unknown policy 'hope'"),
        (lambda: serve([Lengths(5, 5)], 8, "paged", 80, 4), "does not fit a store of 8"),
        (lambda: serve([Lengths(5, 5)], 70, "maximum", 80), "does not fit a store of 70"),
        (lambda: serve([Lengths(5, 5)], 100, "known", 80), "no request ever waited"),
        (
            lambda: pagingcost.budget_tokens(get_config("llama-3.1-8b"), "bfloat16", 16e9),
            "leaves no room",
        ),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        wrong()
