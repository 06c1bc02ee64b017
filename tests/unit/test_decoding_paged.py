"""Many prompts in few blocks: the tokens stay those of the dense cache, whoever is thrown out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_paged import decoder_of, paged, prompts_of
from tiny_models import TINY

from inferlab.decoding import generate
from inferlab.decoding.paged import generate_paged, run_paged
from inferlab.errors import UserError
from inferlab.kvcache import CacheTooSmall


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(TINY)),
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=6),
    block_size=st.sampled_from([1, 4, 16]),
    rows=st.integers(1, 4),
    spare=st.integers(0, 6),
    when_full=st.sampled_from(["preempt", "wait"]),
    seed=st.integers(0, 1000),
)
def test_tokens_are_those_of_each_prompt_alone(
    kind, sizes, block_size, rows, spare, when_full, seed
):
    decoder = decoder_of(kind)
    prompts, outputs = prompts_of([p for p, _ in sizes], seed), [n for _, n in sizes]
    least = max(-(-(p + n - 1) // block_size) for p, n in sizes)
    cache = paged(decoder, rows, 40, block_size=block_size, num_blocks=least + spare)
    run = run_paged(decoder, prompts, outputs, cache, when_full)
    expected = [
        generate(decoder, [p], n, "static")[0] for p, n in zip(prompts, outputs, strict=True)
    ]
    assert run.token_ids == expected
    assert cache.manager.num_free == cache.manager.num_blocks  # nothing is left behind
    assert max(run.batch_sizes, default=0) <= rows
    assert sum(run.batch_sizes) + len(prompts) + run.num_preempted == sum(outputs)
    assert (when_full == "preempt") or run.num_preempted == run.recomputed_tokens == 0


def test_a_full_store_throws_out_the_last_to_enter_and_reads_it_again():
    decoder, prompts = decoder_of(), prompts_of([7, 7, 7])
    cache = paged(decoder, 3, 40, block_size=4, num_blocks=6)  # each grows to 4 blocks
    run = run_paged(decoder, prompts, 8, cache)
    assert run.num_preempted > 0 and run.recomputed_tokens >= 7
    assert run.token_ids == generate(decoder, prompts, 8, "static")
    waits = run_paged(decoder, prompts, 8, cache, "wait")
    assert waits.token_ids == run.token_ids
    assert max(waits.batch_sizes) == 1 < max(run.batch_sizes)


def test_a_larger_store_holds_a_larger_batch_and_blocks_of_one_waste_nothing():
    decoder, prompts = decoder_of(), prompts_of([9, 3, 14, 6])
    small, large = (
        run_paged(decoder, prompts, 6, paged(decoder, 4, 20, block_size=1, num_blocks=n))
        for n in (20, 80)
    )
    assert small.token_ids == large.token_ids
    assert max(small.batch_sizes) < max(large.batch_sizes) == 4
    assert large.waste_ratio == 0 and large.held_tokens == large.lent_tokens > 0


def test_every_token_is_announced_to_the_callback():
    decoder, prompts = decoder_of(), prompts_of([5, 2])
    seen = {0: [], 1: []}

    def on_tokens(rows, tokens, is_step):
        assert is_step or len(rows) == 1
        for row, token in zip(rows, tokens, strict=True):
            seen[row].append(token)

    cache = paged(decoder, 2, 20)
    written = run_paged(decoder, prompts, [4, 6], cache, on_tokens=on_tokens).token_ids
    assert [seen[0], seen[1]] == written == generate_paged(decoder, prompts, [4, 6], cache)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"num_blocks": 2}, UserError, "takes 3 blocks and the cache has 2"),
        ({"capacity": 8}, CacheTooSmall, "beyond the paged cache of 8"),
        ({"when_full": "panic"}, UserError, "'panic'; known: preempt, wait"),
        ({"output_lens": 0}, UserError, "output_len must be 1 or more"),
        ({"prompts": [[]]}, UserError, "at least one token"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_computed(changes, error, words):
    decoder = decoder_of()
    cache = paged(
        decoder, 2, changes.pop("capacity", 20), block_size=4,
        num_blocks=changes.pop("num_blocks", 8),
    )  # fmt: skip
    arguments = {"prompts": [[1] * 8], "output_lens": 3, **changes}
    with pytest.raises(error, match=words) as caught:
        generate_paged(decoder, cache=cache, **arguments)
    assert "\n" not in str(caught.value)
    assert not any(torch.any(store) for store in cache.keys)
