import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY, tiny

from inferlab.errors import UserError
from inferlab.models.decoder import Decoder
from inferlab.models.hf import from_hf_config, to_hf_config
from inferlab.models.layers import Projection, apply_rope, can_pack, rope_table
from inferlab.models.load import load_decoder
from inferlab.models.weights import RandomWeights


def wide_weights(config, seed=0):
    """Random weights large enough that attention and MLP shape the logits."""
    tensors = RandomWeights(config, torch.float32, torch.device("cpu"), seed)
    generator = torch.Generator().manual_seed(seed)
    wide = {}
    for name, tensor in tensors.items():
        wide[name] = (
            tensor * 10 if tensor.dim() == 2 else torch.randn(tensor.shape, generator=generator)
        )
    return wide


def pair(config, seed=0):
    """Our decoder and transformers' model with the same weights."""
    from transformers import AutoModelForCausalLM

    weights = wide_weights(config, seed)
    ours = Decoder(config)
    ours.load_weights(weights)
    theirs = AutoModelForCausalLM.from_config(to_hf_config(config), attn_implementation="sdpa")
    missing = theirs.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    return ours, theirs.eval()


@pytest.mark.parametrize("kind", TINY)
@torch.inference_mode()
def test_logits_are_those_of_transformers(kind):
    config = TINY[kind]
    ours, theirs = pair(config)
    ids = torch.randint(config.vocab_size, (3, 70), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    got = ours(ids, ours.new_cache("static", 3, 70), torch.arange(70)[None], all_positions=True)
    scale = expected.abs().max()
    assert (got - expected).abs().max() < 2e-5 * scale
    last = ours(ids, ours.new_cache("none", 3, 70), torch.arange(70)[None])
    assert (last - expected[:, -1]).abs().max() < 2e-5 * scale


@pytest.mark.parametrize("kind", TINY)
def test_configurations_survive_the_way_to_transformers_and_back(kind):
    config = TINY[kind]
    assert from_hf_config(to_hf_config(config), config.name) == config


def test_other_families_are_refused():
    from transformers import AutoConfig

    with pytest.raises(UserError, match="type gemma2"):
        from_hf_config(AutoConfig.for_model("gemma2"), "a-gemma")


@settings(max_examples=15, deadline=None)
@given(
    data=st.data(), kind=st.sampled_from(sorted(TINY)), cache=st.sampled_from(["static", "dynamic"])
)
@torch.inference_mode()
def test_a_text_read_in_pieces_gives_the_logits_of_the_whole(data, kind, cache):
    config = TINY[kind]
    decoder = Decoder(config)
    decoder.load_weights(wide_weights(config))
    length = data.draw(st.integers(2, 40))
    cuts = data.draw(st.sets(st.integers(1, length - 1), max_size=4))
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(length)[None]
    whole = decoder(ids, decoder.new_cache("none", 2, length), positions, all_positions=True)
    store = decoder.new_cache(cache, 2, length)
    edges = [0, *sorted(cuts), length]
    pieces = [
        decoder(ids[:, a:b], store, positions[:, a:b], all_positions=True)
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    assert store.length == length
    assert (torch.cat(pieces, 1) - whole).abs().max() < 2e-5 * whole.abs().max()


def test_rope_turns_pairs_and_keeps_their_length():
    config = tiny()
    table = rope_table(config, 50, torch.float32, "cpu")[:, None]
    cosines, sines = table[None].chunk(2, -1)
    x = torch.randn(2, 50, 3, 8)
    turned = apply_rope(x, cosines, sines)
    first, second = x[..., :4], x[..., 4:]
    angles = torch.arange(50.0)[:, None, None] * 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    expected = torch.cat(
        (
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ),
        -1,
    )
    assert torch.allclose(turned, expected, atol=1e-5)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no packed bfloat16 product")
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_packing_changes_no_bit(rows):
    generator = torch.Generator().manual_seed(0)
    layer = Projection(576, 1537, True, dtype=torch.bfloat16, device="cpu")
    layer.weight.normal_(generator=generator)
    layer.bias.normal_(generator=generator)
    x = torch.randn(2, rows, 576, generator=generator).bfloat16()
    plain = layer(x)
    layer.pack()
    assert layer.weight is None
    assert torch.equal(layer(x), plain)


def test_packing_is_for_bfloat16_on_a_cpu():
    assert not load_decoder(tiny(), "float32", weights="random").pack()


def test_too_long_a_text_is_refused_before_it_is_read():
    decoder = load_decoder(tiny(), "float32", weights="random")
    with pytest.raises(UserError, match="129 tokens are more than the 128"):
        decoder.reserve(129)
    assert decoder.reserve(128).shape[0] == 128


def test_foreign_weights_are_refused():
    config = tiny()
    weights = wide_weights(config)
    decoder = Decoder(config)
    with pytest.raises(UserError, match="no place for the weight model.extra"):
        decoder.load_weights({**weights, "model.extra": torch.zeros(1)})
    with pytest.raises(UserError, match="shape"):
        decoder.load_weights({**weights, "model.norm.weight": torch.zeros(7)})
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UserError, match="lack model.layers.1.mlp.up_proj.weight"):
        decoder.load_weights(weights)
