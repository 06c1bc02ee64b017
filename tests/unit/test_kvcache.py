import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoder import wide_weights
from tiny_models import TINY, tiny

from inferlab.decoding import generate
from inferlab.errors import UserError
from inferlab.kvcache import CACHES, CacheShape, CacheTooSmall, make_cache
from inferlab.models.cost import kv_cache_bytes
from inferlab.models.decoder import Decoder

SHAPE = CacheShape(num_layers=2, batch_size=3, num_kv_heads=2, capacity=10, head_dim=4)


@functools.cache
def decoder_of(kind):
    decoder = Decoder(TINY[kind])
    decoder.load_weights(wide_weights(TINY[kind]))
    return decoder


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(TINY)),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    output_len=st.integers(1, 15),
    seed=st.integers(0, 10_000),
)
def test_every_cache_gives_the_same_tokens(kind, lengths, output_len, seed):
    decoder = decoder_of(kind)
    generator = torch.Generator().manual_seed(seed)
    vocab = decoder.config.vocab_size
    prompts = [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]
    tokens = {
        cache: generate(decoder, prompts, output_len, cache)
        for cache in ("none", "dynamic", "static", "bucketed", "paged")
    }
    assert all(found == tokens["none"] for found in tokens.values())
    # and a prompt's continuation does not depend on its neighbours
    assert generate(decoder, prompts[:1], output_len) == tokens["static"][:1]


@pytest.mark.parametrize("kind", ["dynamic", "static", "bucketed"])
def test_a_cache_returns_what_was_put_in(kind):
    cache = make_cache(kind, SHAPE, torch.float32, "cpu")
    keys, values = torch.randn(2, 2, 3, 2, 7, 4).unbind(0)  # [layer, B, G, S, D] each
    for start, end in ((0, 4), (4, 5), (5, 7)):
        for layer in (0, 1):
            got_keys, got_values = cache.update(
                layer, keys[layer, :, :, start:end], values[layer, :, :, start:end]
            )
            assert torch.equal(got_keys, keys[layer, :, :, :end])
            assert torch.equal(got_values, values[layer, :, :, :end])
        cache.advance(end - start)
        assert cache.length == end
    cache.reset()
    assert cache.length == 0
    assert torch.equal(cache.update(0, keys[0], values[0])[1], values[0])


def test_bytes_are_those_of_the_cost_model():
    config = tiny()
    decoder = Decoder(config)
    static = decoder.new_cache("static", 3, 20)
    dynamic = decoder.new_cache("dynamic", 3, 20)
    assert static.num_bytes() == kv_cache_bytes(config, "float32", 3, 20)
    assert static.shape.num_bytes(torch.float32) == static.num_bytes()
    assert dynamic.num_bytes() == decoder.new_cache("none", 3, 20).num_bytes() == 0
    for parameter in decoder.parameters():
        parameter.zero_()
    decoder(torch.zeros(3, 7, dtype=torch.int64), dynamic, torch.arange(7)[None])
    assert dynamic.num_bytes() == kv_cache_bytes(config, "float32", 3, 7)


def test_a_full_static_cache_refuses_the_next_position():
    cache = make_cache("static", SHAPE, torch.float32, "cpu")
    block = torch.zeros(3, 2, 10, 4)
    cache.update(0, block, block)
    cache.advance(10)
    with pytest.raises(CacheTooSmall, match="position 11 is beyond the static cache of 10"):
        cache.update(0, block[:, :, :1], block[:, :, :1])


def test_a_given_cache_that_is_too_small_is_reported_by_generate():
    decoder = decoder_of("llama")
    with pytest.raises(CacheTooSmall):
        generate(decoder, [[1, 2, 3]], 9, decoder.new_cache("static", 1, 6))


def test_offloading_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="means nothing on a CPU"):
        make_cache("offloaded", SHAPE, torch.float32, "cpu")


def test_an_unknown_cache_lists_what_exists():
    with pytest.raises(UserError, match=", ".join(CACHES)):
        make_cache("stacked", SHAPE, torch.float32, "cpu")
