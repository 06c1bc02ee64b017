import pytest
import torch
from compression_examples import all_logits, divergence, lively_weights, text
from tiny_models import TINY, tiny

from inferlab.compression.latents import attention_moments
from inferlab.compression.training import finetune
from inferlab.decoding import generate
from inferlab.errors import UserError
from inferlab.kvcache import CacheTooSmall
from inferlab.models.decoder import Decoder
from inferlab.models.decoupled import decoupled_decoder
from inferlab.models.latent import factorize, latent_decoder
from inferlab.models.layouts import layout_tensors

CONFIG = tiny("latent", hidden_size=40, num_q_heads=6, num_kv_heads=2, vocab_size=64)
FULL = 2 * CONFIG.kv_size  # 32 of 40
PROMPTS = [[5, 17, 3, 44, 8, 1, 9], [60], [2, 7, 7]]


def decoder_of(config=CONFIG, tensors=None):
    decoder = Decoder(config)
    decoder.load_weights(lively_weights(config) if tensors is None else tensors)
    return decoder


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("kind", sorted(TINY))
def test_at_full_rank_the_tokens_are_those_of_the_trained_layout(kind, absorb):
    base = decoder_of(TINY[kind])
    rank = min(2 * base.config.kv_size, base.config.hidden_size)
    made = latent_decoder(base, rank, absorb=absorb)
    reference = generate(base, PROMPTS, 9)
    assert generate(made, PROMPTS, 9, "latent") == reference
    assert generate(made, PROMPTS, 9, "none") == reference


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "one"])
def test_a_latent_cache_holds_the_same_function_as_keys_and_values(prompts, absorb):
    made = latent_decoder(decoder_of(), 9, absorb=absorb)
    kept = generate(made, prompts, 11, "latent")
    assert kept == generate(made, prompts, 11, "static") == generate(made, prompts, 11, "none")


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("at_once", [1, 2 * 30 * 32 * 4])
def test_keys_made_for_a_few_sequences_at_a_time_are_the_same(absorb, at_once, monkeypatch):
    made = latent_decoder(decoder_of(), 9, absorb=absorb)
    padded, one = generate(made, PROMPTS, 11, "latent"), generate(made, PROMPTS[:1], 11, "latent")
    same = [list(PROMPTS[0])] * 3  # rows that agree share their angles
    agreed = generate(made, same, 11, "latent")
    monkeypatch.setattr("inferlab.models.latent.MADE_BYTES", at_once)
    assert generate(made, PROMPTS, 11, "latent") == padded
    assert generate(made, PROMPTS[:1], 11, "latent") == one
    assert generate(made, same, 11, "latent") == agreed == 3 * one


def test_the_factors_are_the_best_ones_for_the_inputs_they_were_shown():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(FULL, 40, generator=generator)
    inputs = torch.randn(500, 40, generator=generator) * torch.linspace(0.05, 4, 40)
    moment = inputs.T @ inputs / 500
    outputs = inputs @ weight.T
    errors = {}
    for name, given in (("plain", None), ("shown", moment)):
        found = factorize(weight, CONFIG, 12, given)
        assert found.up.shape == (FULL, 12) and found.down.shape == (12, 40)
        errors[name] = (inputs @ found.down.T @ found.up.T - outputs).square().mean().item()
    assert errors["shown"] < errors["plain"]
    # 12 of 32 dimensions of outputs that are alike in all: about that share of the variance.
    assert 0.3 < factorize(weight, CONFIG, 12, moment).kept_ratio < 0.9


def test_less_rank_keeps_less_and_full_rank_keeps_all():
    weight = torch.randn(FULL, 40, generator=torch.Generator().manual_seed(1))
    kept = [factorize(weight, CONFIG, rank).kept_ratio for rank in (1, 8, 20, FULL)]
    assert kept == sorted(kept) and kept[-1] == pytest.approx(1)
    whole = factorize(weight, CONFIG, FULL)
    assert torch.allclose(whole.up @ whole.down, weight, atol=1e-5)


def test_divergence_falls_as_the_rank_rises():
    base, ids = decoder_of(), text(8)
    expected = all_logits(base, ids)
    moments = attention_moments(base, text(16, seed=9))
    losses = [
        divergence(latent_decoder(base, rank, moments), expected, ids) for rank in (2, 12, 24, FULL)
    ]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-6


def test_moments_are_means_of_what_attention_reads():
    base, ids = decoder_of(), text(4)
    found = attention_moments(base, ids)
    seen = []
    hook = base.layers[1].attention.qkv.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    all_logits(base, ids)
    hook.remove()
    inputs = seen[0].flatten(0, 1)
    assert torch.allclose(
        found["layers.1.attention.qkv"], inputs.T @ inputs / len(inputs), atol=1e-4
    )


def test_cache_bytes_go_with_the_rank_and_the_angles_are_kept_once():
    made = latent_decoder(decoder_of(), 9)
    cache = made.new_cache("latent", 3, 20)
    assert cache.num_bytes() == 4 * (2 * 3 * 20 * 9 + 2 * 20 * CONFIG.head_dim)
    generate(made, PROMPTS, 3, cache)  # rows of different positions
    assert cache.num_bytes() == 4 * (2 * 3 * 20 * 9 + 3 * 2 * 20 * CONFIG.head_dim)
    with pytest.raises(CacheTooSmall, match="beyond the latent cache of 20"):
        generate(made, [[1] * 15, [2] * 3, [3]], 9, cache)


def test_decoupled_attention_steps_as_it_reads():
    made = decoupled_decoder(decoder_of(), 9)
    cache = made.new_cache("latent", 2, 12)
    assert cache.num_bytes() == 4 * 2 * 2 * 12 * (9 + CONFIG.head_dim // 2)
    ids, places = text(2, 12), torch.arange(12)[None]
    with torch.no_grad():
        whole = made(ids, cache, places, all_positions=True)
        cache.reset()
        parts = [made(ids[:, i : i + 1], cache, places[:, i : i + 1]) for i in range(12)]
    assert torch.allclose(torch.stack(parts, 1), whole, atol=1e-4)


def test_bad_ranks_moments_and_models_are_refused():
    base = decoder_of()
    for rank in (0, -3, FULL + 1, 2.5):
        with pytest.raises(UserError, match=f"out of range.*1 to {FULL}"):
            latent_decoder(base, rank)
        with pytest.raises(UserError, match="out of range"):
            decoupled_decoder(base, rank)
    with pytest.raises(UserError, match="lack layers.0"):
        latent_decoder(base, 4, {})
    with pytest.raises(UserError, match="observe this decoder"):
        latent_decoder(base, 4, dict.fromkeys(("layers.0.attention.qkv",), torch.eye(7)))
    with pytest.raises(UserError, match="too few"):
        attention_moments(base, text(1, 39))
    with pytest.raises(UserError, match="inf or NaN"):
        factorize(torch.full((FULL, 40), float("nan")), CONFIG, 4)
    with pytest.raises(UserError, match="choose llama"):
        decoupled_decoder(decoder_of(TINY["qwen3"]), 4)
    with pytest.raises(UserError, match="cache called latent"):
        generate(decoupled_decoder(base, 4), PROMPTS, 2)


def held_out_loss(decoder):
    ids = text(16, seed=99)
    return divergence(decoder, all_logits(decoder_of(), ids), ids)


@pytest.mark.parametrize("make", ["mqa", "latent"])
def test_a_short_training_wins_a_part_back(make):
    config, tensors = layout_tensors(lively_weights(CONFIG), CONFIG, "mqa")
    student = decoder_of(config, tensors) if make == "mqa" else latent_decoder(decoder_of(), 6)
    before = held_out_loss(student)
    losses = finetune(student, decoder_of(), text(64), 30, learning_rate=3e-2, tokens_per_step=256)
    assert len(losses) == 30 and held_out_loss(student) < 0.9 * before
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_training_refuses_what_it_would_break():
    base = decoder_of()
    with pytest.raises(UserError, match="shares weights with the reference"):
        finetune(latent_decoder(base, 6), base, text(), 1)
    with pytest.raises(UserError, match="nothing to train"):
        keep = ("layers.0", "layers.1", "head")
        finetune(decoder_of(), base, text(), 1, keep=keep)
