"""FusedDecoder in Triton's interpreter, on a CPU; `test_fused.py` runs this file.

In float32 its tokens are those of the decoder itself, and its logits differ by rounding only.
"""

import os
from dataclasses import replace

import pytest
import torch
from fused_examples import SCALED, cache_of, random_decoder
from tiny_models import QUANTIZABLE, TINY, tiny

from inferlab.decoding.generate import generate
from inferlab.errors import UserError
from inferlab.models.fused import FusedDecoder
from inferlab.models.projections import replace_weights
from inferlab.quant.formats import FORMATS

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_fused.py instead"
MODELS = {
    "one-layer": tiny("tiny-1", num_layers=1, num_q_heads=2, num_kv_heads=1),
    "llama": TINY["llama"],
    "rope-scaled": replace(TINY["llama-rope-scaled"], num_layers=1),
    "qwen2": replace(TINY["qwen2"], num_layers=1),
    "qwen3": tiny("qwen3-16", qk_norm=True, head_dim=16, tie_embeddings=False, num_layers=1),
    "heads-of-64": tiny(
        "smol", hidden_size=72, num_q_heads=9, num_kv_heads=3, head_dim=64, num_layers=1,
        rope_scaling=SCALED,
    ),
}  # fmt: skip
PROMPTS = {
    "one": [[5, 9, 2, 33, 17]],
    "equal": [[1, 2, 3], [10, 20, 30]],
    "unequal": [[3, 1, 4, 1, 5, 9, 2], [7]],
    "many": [[token] for token in range(17)],
}


@pytest.mark.parametrize(
    ("name", "prompts", "kind"),
    [
        ("llama", "one", "bucketed"), ("llama", "unequal", "paged"), ("one-layer", "many", "paged"),
        ("rope-scaled", "equal", "bucketed"), ("qwen2", "unequal", "bucketed"),
        ("qwen3", "equal", "paged"), ("heads-of-64", "unequal", "bucketed"),
    ],
)  # fmt: skip
def test_the_same_tokens(name, prompts, kind):
    decoder, prompts = random_decoder(MODELS[name]), PROMPTS[prompts]
    expected = generate(decoder, prompts, 3)
    cache = cache_of(kind, decoder, len(prompts), max(map(len, prompts)) + 2)
    assert generate(FusedDecoder(decoder), prompts, 3, cache) == expected
    if len(prompts) == 1:  # the cache is used again
        assert generate(FusedDecoder(decoder), prompts, 3, cache) == expected


@pytest.mark.parametrize("kind", ["bucketed", "paged"])
@torch.no_grad()
def test_the_same_logits_in_chunks_and_at_all_positions(kind):
    decoder = random_decoder(MODELS["one-layer"])
    fused = FusedDecoder(decoder)
    token_ids = torch.tensor([[5, 9, 2, 33, 17, 4], [3, 1, 4, 1, 5, 9]])
    positions = torch.arange(6)[None]
    plain = decoder.new_cache("static", 2, 8)
    expected = decoder(token_ids, plain, positions, all_positions=True)
    cache = cache_of(kind, decoder, 2, 8)
    for first, last in ((0, 3), (3, 5), (5, 6)):
        part = slice(first, last)
        found = fused(token_ids[:, part], cache, positions[:, part], all_positions=True)
        assert torch.allclose(found, expected[:, part], atol=2e-5)
        assert cache.length == last
    assert fused.config is decoder.config and fused.dtype == torch.float32


@torch.no_grad()
def test_bfloat16_stays_near_float64():
    exact = random_decoder(MODELS["llama"]).to(torch.bfloat16)
    fused = FusedDecoder(exact)
    token_ids, positions = torch.tensor([[5, 9, 2, 33, 17]]), torch.arange(5)[None]
    cache = cache_of("bucketed", exact, 1, 8)
    found = fused(token_ids[:, :4], cache, positions[:, :4])
    found = torch.cat((found, fused(token_ids[:, 4:], cache, positions[:, 4:])))
    eager = exact(token_ids, exact.new_cache("static", 1, 8), positions, all_positions=True)
    wide = random_decoder(MODELS["llama"]).to(torch.bfloat16).to(torch.float64)
    expected = wide(token_ids, wide.new_cache("static", 1, 8), positions, all_positions=True)[0, 3:]
    error = (found.double() - expected).norm()
    assert error < 1.5 * (eager[0, 3:].double() - expected).norm()


@torch.no_grad()
def test_a_step_reads_lengths_from_the_view_alone():
    """The part that a CUDA graph holds: begin and advance are outside."""
    decoder = random_decoder(MODELS["one-layer"])
    fused, cache = FusedDecoder(decoder), cache_of("bucketed", decoder, 2, 5)
    token_ids = torch.tensor([[5, 9, 2, 33], [3, 1, 4, 1]])
    fused(token_ids[:, :3], cache, torch.arange(3)[None])
    positions = torch.tensor([[3], [3]])
    cache.begin(positions, None)
    found = fused.step(token_ids[:, 3:], cache, positions)
    again = fused.step(token_ids[:, 3:], cache, positions)
    assert torch.equal(found, again), "a step writes the same place again"
    plain = decoder.new_cache("static", 2, 9)
    expected = decoder(token_ids, plain, torch.arange(4)[None])
    assert torch.allclose(found, expected, atol=2e-5)


def test_what_it_does_not_take_is_refused(monkeypatch):
    decoder = random_decoder(MODELS["llama"])
    with pytest.raises(UserError, match="cannot write into a StaticCache: use the bucketed"):
        generate(FusedDecoder(decoder), [[1]], 2, "static")
    with pytest.raises(UserError, match="power of two, not 10"):
        FusedDecoder(random_decoder(TINY["qwen3"]))
    with pytest.raises(UserError, match="not float64"):
        FusedDecoder(random_decoder(MODELS["llama"], torch.float64))
    quantized = replace_weights(random_decoder(QUANTIZABLE), FORMATS["int8"], "naive")
    with pytest.raises(UserError, match="layers.0.attention.qkv is quantized"):
        FusedDecoder(quantized)
    packed = random_decoder(MODELS["llama"])
    packed.head.weight = None
    with pytest.raises(UserError, match="pack=False"):
        FusedDecoder(packed)
    packed.layers[0].attention = torch.nn.Identity()
    with pytest.raises(UserError, match="do not know Identity"):
        FusedDecoder(packed)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UserError, match="cannot run on cpu"):
        FusedDecoder(decoder)
