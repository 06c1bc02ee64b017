"""The engine must write what each request would get alone, whoever comes, goes or is thrown out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import check_interpreted
from test_paged import decoder_of, prompts_of
from tiny_models import TINY

from inferlab.decoding import generate
from inferlab.decoding.sampling import Sampling
from inferlab.errors import UserError
from inferlab.serving.engine import Engine


def engine_of(decoder=None, **options):
    return Engine(decoder or decoder_of(), **{"max_len": 64, **options})


def drain(engine, outputs=None):
    """Everything the engine still has to say: token ids by request, and reasons."""
    outputs = {} if outputs is None else outputs
    while engine.has_work:
        for out in engine.step():
            tokens, _ = outputs.get(out.seq_id, ([], None))
            outputs[out.seq_id] = ([*tokens, out.token_id], out.finish_reason)
    return outputs


def serve(engine, prompts, output_lens, **options):
    for index, (prompt, length) in enumerate(zip(prompts, output_lens, strict=True)):
        engine.add_request(f"r{index}", prompt, length, **options)
    found = drain(engine)
    return [found[f"r{index}"][0] for index in range(len(prompts))]


def alone(decoder, prompts, output_lens):
    return [generate(decoder, [p], n)[0] for p, n in zip(prompts, output_lens, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(TINY)),
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 15)), min_size=1, max_size=8),
    block_size=st.sampled_from([1, 4, 16, 64]),
    rows=st.integers(1, 5),
    spare=st.integers(0, 8),
    more=st.sampled_from([0, 3, 11, 500]),
    chunk_size=st.none() | st.sampled_from([1, 3, 8, 64]),
    policy=st.sampled_from(["continuous", "static"]),
    prefix_cache=st.booleans(),
    hang_up=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_greedy_tokens_are_those_of_each_request_alone(
    kind, sizes, block_size, rows, spare, more, chunk_size, policy, prefix_cache, hang_up, seed
):
    decoder, dice = decoder_of(kind), np.random.default_rng(seed)
    (common,) = prompts_of([40], seed + 1)
    prompts = [  # some begin alike
        (common[: dice.choice([0, 9, 20])] + own)[: len(own)]
        for own in prompts_of([p for p, _ in sizes], seed)
    ]
    output_lens = [n for _, n in sizes]
    least = max(-(-(p + n - 1) // block_size) for p, n in sizes)
    engine = engine_of(
        decoder, num_blocks=least + spare, block_size=block_size, max_num_seqs=rows,
        max_num_batched_tokens=rows + more, chunk_size=chunk_size, policy=policy,
        prefix_cache=prefix_cache,
    )  # fmt: skip
    found = {}
    for index, (prompt, length) in enumerate(zip(prompts, output_lens, strict=True)):
        engine.add_request(f"r{index}", prompt, length)
        for out in engine.step() if dice.random() < 0.5 else ():
            found[out.seq_id] = ([*found.get(out.seq_id, ([],))[0], out.token_id], None)
    gone = f"r{dice.integers(len(sizes))}" if hang_up else None
    engine.cancel(gone)
    drain(engine, found)
    for index, tokens in enumerate(alone(decoder, prompts, output_lens)):
        seen = found.get(f"r{index}", ([], None))[0]
        assert seen == (tokens[: len(seen)] if f"r{index}" == gone else tokens)
    if prefix_cache:
        engine.scheduler.prefixes.give_up(engine.stats().num_blocks)
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks and engine.cache.manager.problems() == []
    assert stats.output_tokens == sum(len(tokens) for tokens, _ in found.values())


def test_a_full_cache_preempts_and_the_tokens_do_not_change():
    decoder, prompts = decoder_of(), prompts_of([7, 7, 7])
    engine = engine_of(decoder, num_blocks=6, block_size=4)
    assert serve(engine, prompts, [8] * 3) == alone(decoder, prompts, [8] * 3)
    stats = engine.stats()
    assert stats.num_preempted > 0 and stats.output_tokens == 24 and stats.prompt_tokens == 21
    assert stats.computed_tokens > 21 + 24 - 3 and stats.cached_tokens == 0


def test_one_block_for_each_reserves_for_the_longest():
    decoder, prompts = decoder_of(), prompts_of([3, 9, 5])
    engine = engine_of(decoder, num_blocks=2, block_size=64)
    assert serve(engine, prompts, [6] * 3) == alone(decoder, prompts, [6] * 3)
    assert engine.stats().num_preempted == 0


def test_a_shared_prompt_is_read_once():
    decoder, (prompt,) = decoder_of(), prompts_of([33])
    engine = engine_of(decoder, prefix_cache=True)
    engine.add_request("first", prompt, 4)
    (begun,) = engine.step()
    engine.add_request("again", [*prompt, 3], 4)  # while the first is still running
    found = drain(engine)
    assert [begun.token_id, *found["first"][0]] == generate(decoder, [prompt], 4)[0]
    assert found["again"][0] == generate(decoder, [[*prompt, 3]], 4)[0]
    assert engine.stats().cached_tokens == 32
    engine.add_request("whole", prompt[:32], 1)  # a token at least has to be read
    assert drain(engine)["whole"][0] == generate(decoder, [prompt[:32]], 1)[0]
    assert engine.stats().cached_tokens == 32 + 16


def test_a_stop_token_ends_a_request_and_is_handed_out():
    decoder, prompts = decoder_of(), prompts_of([5])
    (tokens,) = alone(decoder, prompts, [12])
    stop = tokens[3]
    end = tokens.index(stop)
    engine = engine_of(decoder)
    engine.add_request("a", prompts[0], 12, stop_token_ids=[stop])
    assert drain(engine) == {"a": (tokens[: end + 1], "stop")}
    engine.add_request("a", prompts[0], 2)
    assert drain(engine) == {"a": (tokens[:2], "length")}


def test_a_seed_draws_the_same_tokens_in_any_company():
    decoder, prompts = decoder_of(), prompts_of([5, 8, 3])
    hot = Sampling(temperature=1.5, seed=7)
    quiet = engine_of(decoder)
    quiet.add_request("hot", prompts[0], 10, hot)
    expected = drain(quiet)["hot"]
    busy = engine_of(decoder, num_blocks=6, block_size=4, max_num_seqs=3)
    busy.add_request("x", prompts[1], 9)
    busy.add_request("hot", prompts[0], 10, hot)
    busy.add_request("y", prompts[2], 9, Sampling(temperature=1.0, seed=1))
    found = drain(busy)
    assert found["hot"] == expected and busy.stats().num_preempted > 0
    assert found["x"][0] == alone(decoder, prompts[1:2], [9])[0]
    assert expected[0] != alone(decoder, prompts[:1], [10])[0]


def test_a_thousand_hang_ups_leave_no_block_behind():
    engine, dice = engine_of(num_blocks=20, block_size=4, chunk_size=5), np.random.default_rng(0)
    for index in range(1000):
        engine.add_request(f"r{index}", [1] * dice.integers(1, 31), int(dice.integers(1, 21)))
        if dice.random() < 0.5:
            engine.step()
        assert engine.cancel(f"r{index}") or engine.stats().output_tokens
    assert not engine.has_work and engine.cache.manager.problems() == []
    assert engine.stats().num_free_blocks == 20


def test_stats_say_what_goes_on():
    engine = engine_of(max_num_seqs=2, chunk_size=4)
    for index in range(3):
        engine.add_request(f"r{index}", [1, 2, 3], 5)
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steps) == (2, 1, 1)
    assert (stats.last_batch_size, stats.last_num_tokens, stats.output_tokens) == (2, 4, 1)
    assert stats.num_free_blocks == stats.num_blocks - 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: engine_of(step="compile"), "unknown step 'compile'; known: eager, kernels"),
        (lambda: engine_of(max_len=0), "max_len must be from 1 to 128, the context length"),
        (lambda: engine_of(max_len=129), "max_len must be from 1 to 128"),
        (lambda: engine_of(num_blocks=0), "num_blocks must be"),
        (lambda: engine_of(max_num_seqs=0), "max_num_seqs must be"),
        (lambda: engine_of().add_request("a", [1, 61], 2), "a token id lies outside 0 to 60"),
        (lambda: engine_of().add_request("a", [-1], 2), "a token id lies outside 0 to 60"),
        (lambda: engine_of().add_request("a", [], 2), "at least one token"),
        (lambda: engine_of().add_request("a", [1] * 60, 6), "65 positions and 64 are the most"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(wrong, words):
    with pytest.raises(UserError, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_an_idle_engine_does_nothing():
    engine = engine_of()
    assert engine.step() == [] and not engine.has_work and engine.stats().num_steps == 0
    assert not torch.is_inference_mode_enabled()


def test_steps_by_the_fused_kernels_in_the_interpreter(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: `make env` installs it")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    check_interpreted("interpreted_engine.py")
