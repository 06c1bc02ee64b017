"""Replacing a decoder's products: all or none, the head untied, the rest packed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import QUANTIZABLE, TINY

from inferlab.errors import UserError
from inferlab.models.layers import Projection, can_pack
from inferlab.models.load import load_decoder
from inferlab.models.projections import (
    plain_weight,
    projections,
    replace_projection,
    replace_weights,
    weights_of,
)
from inferlab.quant.formats import WeightFormat, get_format
from inferlab.quant.grid import quantize
from inferlab.quant.linear import QuantizedLinear, RoundedLinear

INT8 = get_format("int8")


def decoder(dtype="float32", config=QUANTIZABLE, pack=False):
    return load_decoder(config, dtype, weights="random", pack=pack)


def logits(model):
    ids = torch.arange(10)[None] % model.config.vocab_size
    return model(ids, model.new_cache("static", 1, 10), torch.arange(10)[None]).float()


@pytest.mark.parametrize("kind", TINY)
def test_projections_are_all_modules_with_weight_matrices_in_order(kind):
    model = decoder(config=TINY[kind])
    found = [module for _, module in projections(model)]
    assert found == [m for m in model.modules() if isinstance(m, Projection)]
    assert [name for name, _ in projections(model)][-2:] == ["layers.1.mlp.down", "head"]


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["int8", "int8-asym", "int4-g32", "int4-g64", "int4-channel"]),
    st.sampled_from(["packed", "naive"]),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_every_kernel_gives_the_logits_of_rounded_weights(name, kernel, dtype):
    expected = logits(replace_weights(decoder(dtype), get_format(name), "rounded"))
    found = logits(replace_weights(decoder(dtype), get_format(name), kernel))
    tolerance = 1e-4 if dtype == "float32" else 0.03
    assert (found - expected).norm() / expected.norm() < tolerance


def test_int8_hardly_changes_the_logits_and_int4_more():
    plain = logits(decoder())
    errors = [
        (logits(replace_weights(decoder(), get_format(name))) - plain).norm() / plain.norm()
        for name in ("int8", "int4-g32", "int4-channel")
    ]
    assert errors[0] < 0.02 < errors[1] < errors[2] < 0.3


def test_a_tied_head_is_untied_and_the_embedding_stays():
    model = decoder()
    table = model.embedding.clone()
    replace_weights(model, INT8)
    assert torch.equal(model.embedding, table)
    assert isinstance(model.head, QuantizedLinear)
    assert torch.equal(model.head.to_quantized().codes, quantize(table, INT8).codes)


def test_what_is_kept_stays_plain_and_is_packed():
    model = replace_weights(decoder("bfloat16"), INT8, keep=("head", "layers.0"))
    format, kept = weights_of(model)
    assert format == INT8
    assert kept == tuple(n for n, _ in projections(model) if n == "head" or "layers.0" in n)
    assert isinstance(model.head, Projection)
    assert (model.head._packed is not None) == can_pack(torch.bfloat16)
    assert model.embedding is not None and torch.isfinite(logits(model)).all()


def test_weights_of_a_plain_and_of_a_mixed_decoder():
    model = decoder()
    assert weights_of(model) == (None, ())
    for name, format in (("head", INT8), ("layers.0.mlp.down", get_format("int4-g32"))):
        weight = plain_weight(name, model.get_submodule(name))
        replace_projection(model, name, RoundedLinear(quantize(weight, format)))
    with pytest.raises(UserError, match="mixes the weight formats int4-g32, int8"):
        weights_of(model)


def test_a_quantizer_sees_every_name_and_weight():
    seen = {}

    def watch(name, weight, format):
        seen[name] = weight.shape
        return quantize(weight, format)

    model = decoder()
    names = [name for name, _ in projections(model)]
    replace_weights(model, INT8, keep=("head",), quantizer=watch)
    assert list(seen) == names[:-1] and seen["layers.1.mlp.down"] == (64, 128)


def test_biases_are_kept():
    model = decoder(config=TINY["qwen2"])
    for _, module in projections(model):
        if module.bias is not None:
            module.bias.normal_()
    expected = logits(model)
    found = logits(replace_weights(model, INT8, "naive"))
    assert (found - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize(
    ("format", "options", "says"),
    [
        (get_format("int4-g128"), {}, "64 inputs do not divide"),
        (INT8, {"keep": ("heads",)}, "keep='heads' names no projection; known: head"),
        (INT8, {"kernel": "fast"}, "unknown kernel 'fast'"),
        (WeightFormat("int4-g16", 4, 16, False), {}, "use a format with such groups"),
    ],
)
def test_a_refused_decoder_is_as_it_was(format, options, says):
    model = decoder()
    before = logits(model)
    with pytest.raises(UserError, match=says):
        replace_weights(model, format, **options)
    assert weights_of(model) == (None, ()) and torch.equal(logits(model), before)


def test_packed_or_quantized_decoders_are_refused():
    if can_pack(torch.bfloat16):
        with pytest.raises(UserError, match="load with pack=False"):
            replace_weights(decoder("bfloat16", pack=True), INT8)
    model = replace_weights(decoder(), INT8)
    with pytest.raises(UserError, match="already quantized: load the decoder again"):
        replace_weights(model, INT8)
