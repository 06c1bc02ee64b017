import pytest
import torch
from compression_examples import lively_weights
from tiny_models import TINY, tiny

from inferlab.decoding import generate
from inferlab.errors import UserError
from inferlab.kvcache import CacheTooSmall
from inferlab.models.cost import kv_bytes_per_token, num_parameters
from inferlab.models.decoder import Decoder
from inferlab.models.heads import layout_config, layout_heads
from inferlab.models.layouts import (
    layout_tensors,
    load_layout,
    regroup,
    with_layout,
)

WIDE = tiny("wide", num_q_heads=12, num_kv_heads=4)
PROMPTS = [[5, 17, 3, 44, 8, 1, 9], [60], [2, 7, 7]]


def decoder_of(config, tensors=None):
    decoder = Decoder(config)
    decoder.load_weights(lively_weights(config) if tensors is None else tensors)
    return decoder


@pytest.mark.parametrize("kind", sorted(TINY))
def test_repeated_heads_write_the_same_tokens(kind):
    base = decoder_of(TINY[kind])
    many = with_layout(base, "mha")
    assert many.config.num_kv_heads == many.config.num_q_heads
    assert generate(many, PROMPTS, 9) == generate(base, PROMPTS, 9)


@pytest.mark.parametrize("layout", ["mha", "gqa-12", "gqa-4", "gqa-2", "mqa"])
def test_shared_modules_and_whole_files_give_one_decoder(layout):
    tensors = lively_weights(WIDE)
    shared = with_layout(decoder_of(WIDE, tensors), layout)
    config, changed = layout_tensors(tensors, WIDE, layout)
    assert config == shared.config and len(changed) == len(tensors)
    whole = decoder_of(config, changed)
    for index, layer in enumerate(whole.layers):
        assert torch.equal(layer.attention.qkv.weight, shared.layers[index].attention.qkv.weight)
    assert generate(whole, PROMPTS, 5) == generate(shared, PROMPTS, 5)


def test_pooling_averages_neighbours_and_repeating_undoes_nothing():
    rows = torch.arange(4 * 8 * 3, dtype=torch.float32).view(4 * 8, 3)
    by_head = rows.view(4, 8, 3)
    assert torch.equal(regroup(rows, WIDE, 2).view(2, 8, 3)[0], (by_head[0] + by_head[1]) / 2)
    assert torch.equal(regroup(rows, WIDE, 1), by_head.mean(0))
    repeated = regroup(rows, WIDE, 12).view(12, 8, 3)
    assert torch.equal(repeated[3], by_head[1]) and torch.equal(repeated[11], by_head[3])
    assert regroup(rows[:, 0], WIDE, 2).shape == (16,)  # a bias
    assert torch.equal(regroup(rows, WIDE, 4), rows)


def test_pooling_identical_heads_changes_nothing():
    """Heads that were written several times average to what they were."""
    base = decoder_of(tiny("one-head", num_q_heads=6, num_kv_heads=1))
    many = with_layout(base, "mha")
    assert generate(with_layout(many, "gqa-1"), PROMPTS, 7) == generate(base, PROMPTS, 7)


def test_only_attention_takes_memory_of_its_own():
    base = decoder_of(WIDE)
    made = with_layout(base, "mqa")
    assert made.layers[0].mlp is base.layers[0].mlp
    assert made.embedding is base.embedding and made.head.weight is base.embedding
    assert not any(parameter.is_meta for parameter in made.parameters())
    assert with_layout(base, "gqa") is base
    assert sum(p.numel() for p in made.parameters()) == num_parameters(made.config)


def test_cache_bytes_go_with_the_heads():
    size = {
        x: kv_bytes_per_token(layout_config(WIDE, x), "bfloat16") for x in ("mha", "gqa", "mqa")
    }
    assert size["mha"] == 3 * size["gqa"] == 12 * size["mqa"]


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("gqa-5", "cannot share 5"),
        ("gqa-0", "cannot share 0"),
        ("gqa-3", "cannot become 3"),
        ("gqa-6", "cannot become 6"),
        ("gqa-x", "unknown layout"),
        ("mla", "unknown layout"),
        ("", "unknown layout"),
        (3, "unknown layout"),
    ],
)
def test_heads_that_do_not_divide_are_refused_in_one_line(layout, says):
    with pytest.raises(UserError, match=says) as error:
        layout_heads(WIDE, layout)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=says):
        load_layout(WIDE, layout, "float32", weights="random")


def test_a_packed_or_too_long_text_is_refused():
    base = decoder_of(WIDE)
    base.layers[1].attention.qkv.weight = None  # as packing leaves it
    with pytest.raises(UserError, match=r"layers\.1\.attention\.qkv was packed"):
        with_layout(base, "mqa")
    made = load_layout(WIDE, "mqa", "float32", weights="random")
    with pytest.raises(UserError, match="more than the 128"):
        generate(made, [[1] * 100], 60)
    with pytest.raises(CacheTooSmall, match="beyond the static cache of 4"):
        cache = made.new_cache("static", 1, 4)
        made(torch.ones(1, 5, dtype=torch.int64), cache, torch.arange(5)[None])
