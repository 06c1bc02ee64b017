"""A paged cache must not change a token, whatever the lengths, the block size and the sharing."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import check_interpreted
from test_decoder import wide_weights
from tiny_models import TINY

from inferlab.decoding import generate
from inferlab.errors import UserError
from inferlab.kernels.attention_reference import paged_attention
from inferlab.kvcache import CacheShape, CacheTooSmall, PagedCache
from inferlab.kvcache.blocks import OutOfBlocks
from inferlab.models.cost import kv_cache_bytes
from inferlab.models.decoder import Decoder

SHAPE = CacheShape(num_layers=2, batch_size=3, num_kv_heads=2, capacity=40, head_dim=8)


@functools.cache
def decoder_of(kind="llama"):
    decoder = Decoder(TINY[kind])
    decoder.load_weights(wide_weights(TINY[kind]))
    return decoder


def paged(decoder, batch_size, capacity, **options):
    config = decoder.config
    shape = CacheShape(
        config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_dim
    )
    return PagedCache(shape, decoder.dtype, decoder.device, **options)


def prompts_of(lengths, seed=0, vocab=61):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def feed(decoder, cache, tokens):
    """Logits [B, V] after T more tokens [B, T] of each selected sequence, none of them padded."""
    ids = torch.tensor(tokens)
    positions = torch.tensor(cache.lengths())[:, None] + torch.arange(ids.shape[1])
    return decoder(ids, cache, positions)


@torch.inference_mode()
def logits_of(decoder, text):
    """Logits [V] after `text`, nothing kept."""
    positions = torch.arange(len(text))[None]
    return decoder(torch.tensor([text]), decoder.new_cache("none", 1, len(text)), positions)[0]


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(TINY)),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    output_len=st.integers(1, 15),
    block_size=st.sampled_from([1, 3, 16, 64]),
    seed=st.integers(0, 10_000),
)
def test_tokens_are_those_of_the_dense_cache(kind, lengths, output_len, block_size, seed):
    decoder = decoder_of(kind)
    prompts = prompts_of(lengths, seed)
    cache = paged(decoder, len(lengths), 40, block_size=block_size)
    expected = generate(decoder, prompts, output_len, "static")
    assert generate(decoder, prompts, output_len, cache) == expected
    held = [length + output_len - 1 for length in lengths]  # padding is not stored
    assert cache.lengths() == held
    used = sum(cache.manager.blocks_for(n) for n in held)
    assert cache.used_bytes() == kv_cache_bytes(decoder.config, "float32", 1, used * block_size)
    assert generate(decoder, prompts, output_len, cache) == expected  # used again
    assert cache.manager.problems() == []


@settings(max_examples=30, deadline=None)
@given(data=st.data(), block_size=st.sampled_from([1, 2, 5, 32]))
def test_forks_frees_and_unequal_rows_keep_their_texts(data, block_size):
    decoder = decoder_of()
    cache = paged(decoder, 4, 60, block_size=block_size, num_blocks=4 * -(-60 // block_size))
    texts, free_ids = {}, iter(range(100))
    for _ in range(data.draw(st.integers(3, 9))):
        action = data.draw(st.sampled_from(["new", "step", "chunk", "fork", "free"]))
        if action == "new" and len(texts) < 4:
            seq_id = next(free_ids)
            texts[seq_id] = prompts_of([data.draw(st.integers(1, 9))], seq_id)[0]
            cache.select([seq_id])
            feed(decoder, cache, [texts[seq_id]])
        if action == "fork" and 0 < len(texts) < 4:
            parent, child = data.draw(st.sampled_from(sorted(texts))), next(free_ids)
            cache.fork(parent, child)
            texts[child] = list(texts[parent])
        if action == "free" and texts:
            cache.free(seq_id := data.draw(st.sampled_from(sorted(texts))))
            del texts[seq_id]
        if action in ("step", "chunk") and texts:
            rows = data.draw(st.lists(st.sampled_from(sorted(texts)), min_size=1, unique=True))
            count = 1 if action == "step" else data.draw(st.integers(2, 4))
            new = prompts_of([count] * len(rows), data.draw(st.integers(0, 99)))
            cache.select(rows)
            logits = feed(decoder, cache, new)
            for row, seq_id in enumerate(rows):
                texts[seq_id] += new[row]
                alone = logits_of(decoder, texts[seq_id])
                assert torch.allclose(logits[row], alone, rtol=1e-4, atol=1e-4)
        assert cache.manager.problems() == []


def test_a_shared_prompt_is_held_once_and_each_answer_is_its_own():
    decoder = decoder_of()
    cache = paged(decoder, 3, 40, block_size=4)
    (prompt,) = prompts_of([10])
    cache.select(["a"])
    feed(decoder, cache, [prompt])
    before = cache.used_bytes()
    cache.fork("a", "b")
    cache.fork("a", "c")
    assert cache.used_bytes() == before
    cache.select(["c", "a", "b"])
    logits = feed(decoder, cache, [[5], [6], [7]])
    for row, token in enumerate((5, 6, 7)):
        assert torch.allclose(logits[row], logits_of(decoder, [*prompt, token]), atol=1e-4)
    assert cache.used_bytes() == before * 5 // 3  # 2 full blocks shared, 3 of their own
    cache.free("a")
    cache.select(["b"])
    logits = feed(decoder, cache, [[9]])
    assert torch.allclose(logits[0], logits_of(decoder, [*prompt, 7, 9]), atol=1e-4)


def test_the_step_is_the_reference_attention_over_the_view():
    cache = PagedCache(SHAPE, torch.float32, "cpu", block_size=4)
    for seq_id, length in enumerate((9, 1, 12)):
        cache.select([seq_id])
        mask = cache.begin(torch.arange(length)[None], None)
        keys, values = torch.randn(2, 1, 2, length, 8)
        cache.attend(0, torch.randn(1, length, 4, 8), keys, values, mask)
    cache.select([0, 1, 2])
    mask = cache.begin(torch.tensor([[9], [1], [12]]), None)
    queries = torch.randn(3, 1, 4, 8)
    mixed = cache.attend(0, queries, torch.randn(3, 2, 1, 8), torch.randn(3, 2, 1, 8), mask)
    view = cache.view(0)
    assert view.lengths.tolist() == [10, 2, 13] and view.block_tables.shape == (3, 4)
    expected = paged_attention(queries[:, 0], view)
    assert torch.allclose(mixed, expected.reshape(3, 1, -1), atol=1e-5)


def test_padding_takes_no_place_and_a_step_keeps_its_addresses():
    cache = PagedCache(SHAPE, torch.float32, "cpu", block_size=4)
    mask = torch.zeros(3, 1, 3, 3)
    cache.begin(torch.tensor([[0, 0, 0], [0, 1, 2], [0, 0, 1]]), mask)
    keys = torch.arange(1.0, 10).view(3, 1, 3, 1).expand(3, 2, 3, 8)
    cache.attend(1, torch.randn(3, 3, 4, 8), keys, keys, mask)
    cache.advance(3)
    assert cache.lengths() == [1, 3, 2]
    held = cache.keys[1][:3, 0, :, 0]
    assert held.tolist() == [[3, 0, 0, 0], [4, 5, 6, 0], [8, 9, 0, 0]]
    address = cache.view(1).block_tables.data_ptr()
    cache.begin(torch.tensor([[1], [3], [2]]), None)
    view = cache.view(0)
    assert view.lengths.tolist() == [2, 4, 3] and view.block_tables.data_ptr() == address
    assert view.slots(torch.tensor([[1], [3], [2]])).tolist() == [1, 7, 10]


def test_out_of_blocks_changes_nothing():
    decoder = decoder_of()
    cache = paged(decoder, 3, 40, block_size=4, num_blocks=3)
    prompt, other = prompts_of([8, 5])
    cache.select(["a"])
    feed(decoder, cache, [prompt])
    tables, keys = cache.manager.block_table("a"), [store.clone() for store in cache.keys]
    cache.select(["a", "b"])
    with pytest.raises(OutOfBlocks, match="2 blocks are needed and 1 are free"):
        feed(decoder, cache, [[1], [2]])
    cache.select(["b"])
    with pytest.raises(OutOfBlocks):
        feed(decoder, cache, [other])
    assert cache.manager.seq_ids == ("a",) and cache.manager.block_table("a") == tables
    assert all(torch.equal(a, b) for a, b in zip(keys, cache.keys, strict=True))
    cache.select(["a"])
    logits = feed(decoder, cache, [[3]])
    assert torch.allclose(logits[0], logits_of(decoder, [*prompt, 3]), atol=1e-4)


def test_bytes_are_the_whole_store():
    cache = PagedCache(SHAPE, torch.bfloat16, "cpu", block_size=16, num_blocks=5)
    assert cache.num_bytes() == 5 * 16 * 2 * 2 * 2 * 8 * 2
    assert cache.used_bytes() == 0
    assert PagedCache(SHAPE, torch.bfloat16, "cpu").manager.num_blocks == 9  # 3 times ceil(40 / 16)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda c: c.select([]), UserError, "0 sequences do not fit the 3 rows"),
        (lambda c: c.select(range(4)), UserError, "4 sequences do not fit the 3 rows"),
        (lambda c: c.select([1, 1]), UserError, "selected twice"),
        (lambda c: c.begin(torch.zeros(2, 1), None), UserError, "2 rows for 3 sequences"),
        (lambda c: c.begin(torch.arange(41)[None], None), CacheTooSmall, "beyond the paged"),
        (lambda c: c.free("x"), UserError, "no sequence 'x'"),
        (lambda c: PagedCache(SHAPE, torch.float32, "cpu", 0), UserError, "block_size must be"),
        (lambda c: PagedCache(SHAPE, torch.float32, "cpu", 16, -1), UserError, "num_blocks must"),
        (
            lambda c: PagedCache(SHAPE, torch.float32, "cpu", kernel="fast"),
            UserError,
            "unknown kernel 'fast'; known: auto, gather, triton",
        ),
        (
            lambda c: PagedCache(SHAPE, torch.float32, "cpu", kernel="triton"),
            UserError,
            "or kernel='gather'",
        ),
    ],
)
def test_bad_input_gets_one_line(wrong, error, words):
    cache = PagedCache(SHAPE, torch.float32, "cpu")
    with pytest.raises(error, match=words) as caught:
        wrong(cache)
    assert "\n" not in str(caught.value)
    assert cache.manager.num_free == 9


def test_our_kernel_follows_the_tables_in_the_interpreter(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: `make env` installs it")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    check_interpreted("interpreted_paged.py")
