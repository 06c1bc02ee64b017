import dataclasses

import pytest
import torch
from compression_examples import all_logits, divergence, lively_weights, make_decoder, text
from tiny_models import TINY, tiny

from inferlab.errors import UserError
from inferlab.models.decoder import Decoder
from inferlab.models.equivalent import (
    KINDS,
    equivalent_config,
    equivalent_tensors,
    fold_norms,
    load_equivalent,
    permute_inner,
    rotate_residual,
    save_equivalent,
)
from inferlab.models.weights import weight_shapes
from inferlab.quant.rotation import random_orthogonal

ODD = {**TINY, "llama-shared": tiny("tiny-shared", num_q_heads=6, num_kv_heads=3)}


def relative(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("kind", ["plain", "folded", "rotated", "permuted"])
@pytest.mark.parametrize("shape", ODD)
def test_every_kind_computes_the_same_logits(shape, kind):
    config = ODD[shape]
    tensors = lively_weights(config)
    untouched = {name: tensor.clone() for name, tensor in tensors.items()}
    ids = text(2, 30, vocab_size=config.vocab_size)
    expected = all_logits(make_decoder(config, tensors), ids)
    target, changed = equivalent_tensors(tensors, config, kind, seed=3)
    assert relative(all_logits(make_decoder(target, changed), ids), expected) < 1e-4
    assert set(changed) == set(weight_shapes(target))
    assert all(torch.equal(tensors[name], untouched[name]) for name in tensors)
    if kind != "plain":
        assert not target.tie_embeddings and target.source is None
        assert target == equivalent_config(config, kind) or kind in ("rotated", "permuted")


def test_the_hadamard_kind_needs_a_size_with_a_construction():
    config = tiny("tiny-64", hidden_size=64)
    tensors = lively_weights(config)
    ids = text(vocab_size=61)
    target, changed = equivalent_tensors(tensors, config, "hadamard")
    expected = all_logits(make_decoder(config, tensors), ids)
    assert relative(all_logits(make_decoder(target, changed), ids), expected) < 1e-4
    with pytest.raises(UserError, match="no Hadamard matrix of size 35"):
        equivalent_tensors(lively_weights(TINY["llama-mha-odd"]), TINY["llama-mha-odd"], "hadamard")


def test_folding_leaves_norms_of_one():
    config, folded = fold_norms(lively_weights(TINY["qwen3"]), TINY["qwen3"])
    for name, tensor in folded.items():
        if "layernorm" in name or name == "model.norm.weight":
            assert torch.equal(tensor, torch.ones_like(tensor))
    assert not torch.equal(folded["model.layers.0.self_attn.q_norm.weight"], torch.ones(10))
    assert config.name == "tiny-qwen3-folded"


def test_a_permutation_moves_every_channel_and_mixes_none():
    config = TINY["llama"]
    folded = fold_norms(lively_weights(config), config)[1]
    permuted = equivalent_tensors(lively_weights(config), config, "permuted", seed=1)[1]
    for name, before in folded.items():
        after = permuted[name]
        assert torch.allclose(before.flatten().sort().values, after.flatten().sort().values)
        if before.ndim == 2:
            assert not torch.equal(before, after), name


def test_inner_channels_of_value_heads_stay_within_their_head():
    config = tiny("tiny-shared", num_q_heads=4, num_kv_heads=2)
    tensors = lively_weights(config)
    permuted = permute_inner(tensors, config, seed=0)
    name = "model.layers.1.self_attn.v_proj.weight"
    before, after = (t[name].view(2, 8, -1).sum(-1).sort(1).values for t in (tensors, permuted))
    assert torch.allclose(before, after)


def test_a_matrix_that_would_change_the_model_is_refused():
    config = TINY["llama"]
    tensors = lively_weights(config)
    with pytest.raises(UserError, match=r"is \[8, 8\] and the residual stream has 48"):
        rotate_residual(tensors, config, random_orthogonal(8))
    with pytest.raises(UserError, match="not orthogonal"):
        rotate_residual(tensors, config, random_orthogonal(48) * 1.01)
    with pytest.raises(UserError, match="not orthogonal"):
        rotate_residual(tensors, config, torch.full((48, 48), float("nan")))


def test_loading_by_kind():
    config = TINY["llama"]
    plain = load_equivalent(config, "plain", weights="random")
    rotated = load_equivalent(config, "rotated", weights="random", seed=2)
    ids = text(vocab_size=61)
    assert relative(all_logits(rotated, ids), all_logits(plain, ids)) < 1e-4
    assert rotated.config.name == "tiny-llama-rotated" and plain.config == config
    assert rotated.head.weight is not rotated.embedding
    half = load_equivalent(config, "permuted", "bfloat16", weights="random")
    assert half.dtype == torch.bfloat16
    with pytest.raises(UserError, match="unknown kind 'turned'.*plain, folded, rotated"):
        load_equivalent(config, "turned", weights="random")
    with pytest.raises(UserError, match="no published weights"):
        load_equivalent(rotated.config)


@pytest.mark.parametrize("kind", ["plain", "rotated"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_copy_is_one_for_transformers(tmp_path, kind, dtype):
    from transformers import AutoModelForCausalLM

    config = tiny("tiny-64", hidden_size=64, num_q_heads=4)
    folder = save_equivalent(tmp_path / "copy", config, kind, dtype, weights="random")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert str(theirs.dtype) == f"torch.{dtype}"
    assert theirs.config.tie_word_embeddings == (kind == "plain")
    ids = text(vocab_size=61)
    with torch.no_grad():
        got = theirs.float()(ids).logits
    ours = load_equivalent(config, kind, dtype, weights="random")
    exact = Decoder(ours.config)
    exact.load_state_dict({name: tensor.float() for name, tensor in ours.state_dict().items()})
    assert relative(got, all_logits(exact, ids)) < 1e-4
    with pytest.raises(UserError, match="is not empty"):
        save_equivalent(folder, config, kind, weights="random")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_all_kinds_are_named():
    assert KINDS == ("plain", "folded", "rotated", "hadamard", "permuted")
    for kind in KINDS[1:]:
        config = equivalent_config(TINY["llama"], kind)
        assert dataclasses.replace(config, name="tiny-llama", tie_embeddings=True) == TINY["llama"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rotated", "permuted", "hadamard"])
def test_the_embedded_model_stays_itself(kind):
    ids = text(1, 24, vocab_size=49152)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = all_logits(load_equivalent("smollm2-135m"), ids)
        copy = load_equivalent("smollm2-135m", kind)
        assert relative(all_logits(copy, ids), expected) < 1e-3
        assert divergence(copy, expected, ids) < 1e-6
    finally:
        torch.set_num_threads(threads)
