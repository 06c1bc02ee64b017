"""The bucketed cache: fixed shapes, places told by a tensor, padding left out."""

import pytest
import torch
from tiny_models import TINY

from inferlab.decoding.compiled import CompiledStep
from inferlab.decoding.generate import generate
from inferlab.errors import UserError
from inferlab.kernels.attention import attend, attend_fusible
from inferlab.kvcache import CacheShape, CacheTooSmall, make_cache
from inferlab.kvcache.bucketed import ALIGNMENT, bucket_mask, bucket_width
from inferlab.models.load import load_decoder

SHAPE = CacheShape(num_layers=2, batch_size=3, num_kv_heads=2, capacity=300, head_dim=4)


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(TINY["llama"], "float32", weights="random")


@pytest.fixture
def cache():
    return make_cache("bucketed", SHAPE, torch.float32, "cpu")


def test_a_step_reads_a_multiple_of_the_bucket_or_all_there_is(cache):
    assert [bucket_width(end, 300) for end in (1, 128, 129, 256, 257, 300)] == [
        128, 128, 256, 256, 304, 304
    ]  # fmt: skip
    for length, width in ((0, 128), (127, 128), (128, 256), (256, 304), (299, 304)):
        cache.length = length
        step = cache.step(cache.width)
        assert cache.width == width == step.keys[1].shape[2] == step.values[0].shape[2]
        assert not step.keys[0].is_contiguous()  # the widest too, or it would be another kind
        assert step.keys[0].data_ptr() == cache.keys[0].data_ptr()


def test_each_layer_is_a_tensor_of_its_own_and_bytes_are_what_is_held(cache):
    stores = {store.untyped_storage().data_ptr() for store in (*cache.keys, *cache.values)}
    assert len(stores) == 2 * SHAPE.num_layers
    surplus = cache.num_bytes() / SHAPE.num_bytes(torch.float32)
    assert 1 < surplus <= (SHAPE.capacity + ALIGNMENT) / SHAPE.capacity


def test_the_mask_ends_with_the_newest_token_of_each_sequence():
    mask = bucket_mask(torch.tensor([0, 2, 3]), 4, torch.bfloat16)
    assert mask.shape == (3, 1, 1, 4) and mask.dtype == torch.bfloat16
    assert (mask[:, 0, 0] == 0).tolist() == [[True] + [False] * 3, [True] * 3 + [False], [True] * 4]
    assert mask[0, 0, 0, 1:].isneginf().all()


def test_places_and_lengths_keep_their_addresses_and_follow_the_prompts(decoder):
    prompts = [[1, 2, 3, 4], [5], [6, 7]]
    cache = decoder.new_cache("bucketed", 3, 6)
    addresses = cache.slots.data_ptr(), cache.lengths.data_ptr(), cache.view(1).keys.data_ptr()
    tokens = generate(decoder, prompts, 3, cache)
    assert cache.lengths.tolist() == [6, 3, 4] and cache.slots.tolist() == [5, 2, 3]
    view = cache.view(1)
    assert view.lengths is cache.lengths and view.block_tables is None
    assert addresses == (cache.slots.data_ptr(), view.lengths.data_ptr(), view.keys.data_ptr())
    for row, prompt in enumerate(prompts):  # what is stored is what the prompt alone would store
        alone = decoder.new_cache("static", 1, 6)
        assert generate(decoder, [prompt], 3, alone) == [tokens[row]]
        length = len(prompt) + 2
        keys, values = (store[:, :, :length] for store in (alone._keys[1], alone._values[1]))
        assert torch.allclose(view.keys[row : row + 1, :, :length], keys, atol=1e-5)
        assert torch.allclose(view.values[row : row + 1, :, :length], values, atol=1e-5)


def test_more_than_fits_is_refused_before_anything_is_written(decoder):
    cache = decoder.new_cache("bucketed", 1, 3)
    with torch.inference_mode():
        decoder(torch.tensor([[1, 2, 3]]), cache, torch.arange(3)[None])
        kept = [store.clone() for store in (*cache.keys, cache.slots, cache.lengths)]
        for new in (1, 2):
            with pytest.raises(CacheTooSmall, match="beyond the bucketed cache of 3"):
                decoder(torch.ones(1, new).long(), cache, 3 + torch.arange(new)[None])
    now = (*cache.keys, cache.slots, cache.lengths)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True)) and cache.length == 3


def test_several_tokens_behind_prompts_of_unequal_length_are_refused(decoder):
    cache = decoder.new_cache("bucketed", 2, 8)
    generate(decoder, [[1, 2, 3], [4]], 2, cache)
    with torch.inference_mode(), pytest.raises(UserError, match="only when it is empty"):
        decoder(torch.ones(2, 2).long(), cache, torch.tensor([[4, 5], [2, 3]]))


def test_several_tokens_behind_equal_prompts_are_read_as_by_the_static_cache(decoder):
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    logits = []
    for kind in ("static", "bucketed"):
        cache = decoder.new_cache(kind, 2, 5)
        with torch.inference_mode():
            decoder(ids[:, :2], cache, torch.arange(2)[None])
            logits.append(decoder(ids[:, 2:], cache, torch.arange(2, 5)[None]))
    assert torch.equal(*logits)


def test_a_cache_made_in_inference_mode_holds_plain_tensors(decoder):
    with torch.inference_mode():
        cache = decoder.new_cache("bucketed", 1, 3)
    assert not any(store.is_inference() for store in (*cache.keys, cache.slots, cache.lengths))


def test_a_compiled_step_holds_no_more_than_it_must(decoder):
    step = CompiledStep(decoder)
    cache = decoder.new_cache("bucketed", 1, 300)
    cache.length = 128
    held = step._held(cache)
    assert held.keys[0].shape[2] == 256 and step._held(cache) is held
    step.release()
    assert step._cache is None and not step._views


@pytest.mark.parametrize(("num_kv", "shared"), [(1, 1), (3, 3), (2, 4)])
def test_attention_for_the_compiler_is_attention(num_kv, shared):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 1, num_kv * shared, 16, generator=generator)
    keys, values = (torch.randn(2, num_kv, 13, 16, generator=generator) for _ in range(2))
    mask = bucket_mask(torch.tensor([12, 4]), 13, torch.float32)
    expected = attend(queries, keys, values, mask)
    found = attend_fusible(queries, keys, values, mask)
    torch.testing.assert_close(found, expected)
    values[1, :, 5:] = 1e9  # behind the newest token of the second sequence: never counted
    assert torch.equal(found, attend_fusible(queries, keys, values, mask))
