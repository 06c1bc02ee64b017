"""Tokens of many sequences in one row must get the logits that each would get alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_paged import decoder_of, logits_of, paged, prompts_of
from tiny_models import TINY

from inferlab.kvcache import CacheTooSmall
from inferlab.kvcache.blocks import OutOfBlocks
from inferlab.kvcache.packed import PackedPass, pack_prompts


@torch.inference_mode()
def feed_packed(decoder, cache, pieces, rows=None):
    """Logits after `pieces`, a list of (sequence, its next tokens), read in one row."""
    packed = PackedPass(cache, [(seq_id, len(tokens)) for seq_id, tokens in pieces])
    token_ids = torch.tensor([[token for _, tokens in pieces for token in tokens]])
    return decoder(token_ids, packed, packed.positions, rows=packed.ends if rows is None else rows)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(TINY)),
    texts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    block_size=st.sampled_from([1, 4, 16, 30]),
    data=st.data(),
)
def test_logits_are_those_of_each_text_alone_however_it_is_cut(kind, texts, block_size, data):
    decoder, prompts = decoder_of(kind), prompts_of(texts, sum(texts))
    cache = paged(decoder, len(prompts), 30, block_size=block_size)
    read = [0] * len(prompts)
    while unread := [i for i, text in enumerate(prompts) if read[i] < len(text)]:
        chosen = data.draw(st.lists(st.sampled_from(unread), min_size=1, unique=True))
        pieces = []
        for i in chosen:
            count = data.draw(st.integers(1, len(prompts[i]) - read[i]))
            pieces.append((i, prompts[i][read[i] : read[i] + count]))
            read[i] += count
        logits = feed_packed(decoder, cache, pieces)
        alone = torch.stack([logits_of(decoder, prompts[i][: read[i]]) for i in chosen])
        assert torch.allclose(logits, alone, atol=1e-4)
    assert cache.manager.problems() == []


def test_packed_prompts_are_continued_by_the_cache_as_a_batch():
    decoder, prompts = decoder_of(), prompts_of([9, 1, 14, 2])
    cache = paged(decoder, 4, 20, block_size=4)
    logits = pack_prompts(decoder, prompts, cache)
    assert torch.allclose(logits, torch.stack([logits_of(decoder, p) for p in prompts]), atol=1e-4)
    assert cache.lengths() == [9, 1, 14, 2]
    with torch.inference_mode():
        next_ids = logits.argmax(-1)
        after = decoder(next_ids[:, None], cache, torch.tensor(cache.lengths())[:, None])
    texts = [p + [n] for p, n in zip(prompts, next_ids.tolist(), strict=True)]
    assert torch.allclose(after, torch.stack([logits_of(decoder, t) for t in texts]), atol=1e-4)


def test_only_the_logits_that_are_wanted_are_made():
    decoder, prompts = decoder_of(), prompts_of([5, 7])
    pieces = list(enumerate(prompts))
    one = feed_packed(decoder, paged(decoder, 2, 20), pieces, rows=[11])
    assert one.shape == (1, 61) and torch.allclose(
        one[0], logits_of(decoder, prompts[1]), atol=1e-4
    )
    assert feed_packed(decoder, paged(decoder, 2, 20), pieces, rows=[]).shape == (0, 61)


def test_more_tokens_in_a_row_than_the_context_are_no_matter():
    decoder, prompts = decoder_of(), prompts_of([100, 90, 60])  # a context of 128
    logits = pack_prompts(decoder, prompts, paged(decoder, 3, 128))
    assert torch.allclose(logits[1], logits_of(decoder, prompts[1]), atol=1e-4)


def test_a_pass_without_room_changes_nothing():
    decoder = decoder_of()
    cache = paged(decoder, 2, 20, block_size=4, num_blocks=5)
    feed_packed(decoder, cache, [("a", [1] * 9)])
    with pytest.raises(OutOfBlocks):
        PackedPass(cache, [("a", 1), ("b", 9)])
    with pytest.raises(CacheTooSmall):
        PackedPass(cache, [("a", 12)])
    assert cache.manager.num_tokens("a") == 9 and "b" not in cache.manager
    assert cache.manager.problems() == []


def test_a_row_that_held_a_sequence_before_notices_what_happened_elsewhere():
    decoder = decoder_of()
    cache = paged(decoder, 2, 30, block_size=2)
    texts = {"a": [1, 2, 3], "b": [4, 5]}

    def feed(*pieces):
        for seq_id, tokens in pieces:
            texts[seq_id] = texts.get(seq_id, []) + tokens
        logits = feed_packed(decoder, cache, pieces)
        for row, (seq_id, _) in zip(logits, pieces, strict=True):
            assert torch.allclose(row, logits_of(decoder, texts[seq_id]), atol=1e-4)

    texts, first = {}, texts
    feed(("a", first["a"]), ("b", first["b"]))
    for step in range(6):  # b grows in the first row, then is read in the second again
        feed(("b", [step]))
    feed(("a", [7]), ("b", [8]))
    cache.free("b")
    del texts["b"]
    feed(("c", [9] * 4))  # takes over blocks of b
    cache.manager.fork("a", "b", 2)
    texts["b"] = texts["a"][:2]
    feed(("a", [1]), ("b", [2]))
