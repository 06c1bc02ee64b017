import pytest
import torch
from compression_examples import (
    SMALL,
    SMALL_BIASED,
    all_logits,
    divergence,
    make_decoder,
    text,
)

from inferlab.compression.apply import (
    METHODS,
    quantize_decoder,
    scale_for_awq,
    sequential_gptq,
    smooth_decoder,
)
from inferlab.compression.fold import fold_scales, shared_by_heads
from inferlab.compression.observe import observe
from inferlab.errors import UserError
from inferlab.models.layers import Projection
from inferlab.models.projections import projections
from inferlab.quant.formats import FORMATS, get_format
from inferlab.quant.grid import quantize

CONFIGS = pytest.mark.parametrize("config", [SMALL, SMALL_BIASED], ids=lambda c: c.name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["int8", "int8-tensor", "int4-g32", "int4-channel"])
@CONFIGS
def test_every_method_quantizes_every_projection(config, name, method):
    ids, decoder = text(), make_decoder(config)
    expected = all_logits(decoder, ids)
    quantized = quantize_decoder(decoder, name, method, token_ids=ids, kernel="rounded")
    assert quantized is decoder
    assert all(module.format is FORMATS[name] for _, module in projections(decoder))
    limit = 0.02 if name.startswith("int8") else 0.5
    assert 0 < divergence(decoder, expected, ids) < limit


@pytest.mark.parametrize("name", ["int4-g32", "int4-channel"])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_calibrated_methods_lose_less_than_rounding_to_nearest(name, method):
    loss = {}
    for used in ("rtn", method):
        decoder, ids = make_decoder(), text(32, 64)
        decoder.layers[0].attention_norm.weight[5] *= 30  # an outlier channel
        decoder.layers[1].mlp_norm.weight[9] *= 30
        expected = all_logits(decoder, ids)
        quantize_decoder(decoder, name, used, token_ids=ids, kernel="rounded")
        loss[used] = divergence(decoder, expected, ids)
    assert loss[method] < 0.9 * loss["rtn"]


@CONFIGS
def test_awq_scales_leave_the_function_as_it_is(config):
    decoder, ids = make_decoder(config), text()
    expected = all_logits(decoder, ids)
    before = decoder.layers[0].attention.out.weight.clone()
    alphas = scale_for_awq(decoder, get_format("int4-g32"), observe(decoder, ids), ["layers.1"])
    assert set(alphas) == {f"layers.0.{p}" for p in ("attention.qkv", "attention.out",
                                                     "mlp.gate_up", "mlp.down")}  # fmt: skip
    assert any(alphas.values())
    assert alphas["layers.0.attention.out"] == 0 or not torch.equal(
        before, decoder.layers[0].attention.out.weight
    )
    assert divergence(decoder, expected, ids) < 1e-7


@CONFIGS
def test_smoothing_moves_ranges_and_not_the_function(config):
    decoder, ids = make_decoder(config), text()
    decoder.layers[0].attention_norm.weight[5] *= 30
    expected = all_logits(decoder, ids)
    before = observe(decoder, ids)
    parts = ("attention.qkv", "mlp.gate_up", "mlp.down", "attention.out")
    smooth_decoder(decoder, before, 0.5, parts)
    after = observe(decoder, ids)
    for name in ("layers.0.attention.qkv", "layers.1.mlp.gate_up", "layers.0.mlp.down"):
        weight = decoder.get_submodule(name).weight.abs().amax(0)
        assert torch.allclose(after[name].absmax, weight, rtol=0.02)
    spread = [s["layers.0.attention.qkv"].absmax for s in (before, after)]
    assert spread[1].max() / spread[1].median() < 0.5 * spread[0].max() / spread[0].median()
    assert divergence(decoder, expected, ids) < 1e-7


@CONFIGS
def test_scales_of_any_projection_can_be_folded(config):
    decoder, ids = make_decoder(config), text()
    expected = all_logits(decoder, ids)
    generator = torch.Generator().manual_seed(0)
    for name, module in projections(decoder):
        scales = torch.rand(module.in_features, generator=generator) + 0.5
        if name.endswith("out"):
            with pytest.raises(UserError, match="must share its scales"):
                fold_scales(decoder, name, scales)
            scales = shared_by_heads(config, scales)
        if name == "head" and config.tie_embeddings:
            with pytest.raises(UserError, match="head is the embedding table"):
                fold_scales(decoder, name, scales)
            continue
        fold_scales(decoder, name, scales)
    assert divergence(decoder, expected, ids) < 1e-7
    for bad in (torch.zeros(64), torch.full((64,), float("nan")), torch.full((64,), float("inf"))):
        with pytest.raises(UserError, match="positive and finite"):
            fold_scales(decoder, "layers.0.attention.qkv", bad)
    with pytest.raises(UserError, match="has 64 inputs"):
        fold_scales(decoder, "layers.0.attention.qkv", torch.ones(3))


def test_gptq_in_order_sees_what_the_rounded_layers_produce():
    decoder, ids = make_decoder(), text()
    names = [name for name, _ in projections(decoder)]
    format = get_format("int4-g32")
    stats = observe(decoder, ids, hessians=True)
    plain = dict(projections(decoder))
    rounded = sequential_gptq(decoder, format, names, ids)
    assert dict(projections(decoder)) == plain, "the decoder is as it was"
    at_once = make_decoder()
    quantize_decoder(at_once, format, "gptq", stats, kernel="rounded")
    for name, module in projections(at_once):
        same = torch.equal(module.to_quantized().codes, rounded[name].codes)
        assert same == name.startswith("layers.0."), name


def test_what_is_kept_stays_plain():
    for method in METHODS:
        decoder = make_decoder()
        quantize_decoder(
            decoder, "int4-g32", method, keep=("head", "layers.1", "mlp.down"), token_ids=text(),
            kernel="rounded",
        )  # fmt: skip
        plain = [name for name, module in projections(decoder) if isinstance(module, Projection)]
        assert plain == ["layers.0.mlp.down", *(name for name, _ in list(projections(decoder))[4:])]
        if method != "awq":  # whose scales go through the rows of `up` and `v`
            assert torch.equal(decoder.layers[1].mlp.down.weight,
                               make_decoder().layers[1].mlp.down.weight)  # fmt: skip


def test_rounding_to_nearest_is_that_of_each_weight():
    decoder, format = quantize_decoder(make_decoder(), "int4-g32"), get_format("int4-g32")
    for (_, module), (_, plain) in zip(
        projections(decoder), projections(make_decoder()), strict=True
    ):
        assert torch.equal(module.to_quantized().codes, quantize(plain.weight, format).codes)


REFUSED = {
    "method": (dict(method="magic"), "unknown method 'magic'; known: rtn, awq, gptq"),
    "format": (dict(format="int3"), "unknown weight format"),
    "kernel": (dict(kernel="warp"), "unknown kernel"),
    "keep": (dict(keep=("mlp.sideways",)), "names no projection"),
    "group": (dict(format="int4-g64"), "96 inputs do not divide into groups of 64"),
    "no data": (dict(token_ids=None), "needs calibration data"),
    "few": (dict(token_ids=text(1, 20)), "20 calibration tokens are too few"),
    "foreign": (dict(token_ids=text() + 60), "outside 0 to 63"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_what_is_refused_leaves_the_decoder_alone(method, case):
    changes, message = REFUSED[case]
    decoder, ids = make_decoder(), text()
    expected = all_logits(decoder, ids)
    settings = {"format": "int4-g32", "method": method, "token_ids": ids, **changes}
    with pytest.raises(UserError, match=message):
        quantize_decoder(decoder, **settings)
    assert all(isinstance(module, Projection) for _, module in projections(decoder))
    assert torch.equal(all_logits(decoder, ids), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_broken_weights_are_refused_by_every_method(method, bad):
    decoder = make_decoder()
    decoder.layers[1].mlp.down.weight[3, 4] = bad
    with pytest.raises(UserError, match="inf"):
        quantize_decoder(decoder, "int4-g32", method, token_ids=text(), kernel="rounded")
    assert all(isinstance(module, Projection) for _, module in projections(decoder))


@pytest.mark.parametrize("method", METHODS)
def test_dead_and_constant_weights_pass_through(method):
    decoder, ids = make_decoder(), text()
    decoder.layers[0].mlp.down.weight.zero_()
    decoder.layers[1].attention.out.weight.fill_(0.25)
    decoder.layers[1].mlp_norm.weight[:5] = 0  # dead channels: zeros in the Hessian
    quantize_decoder(decoder, "int4-g32", method, token_ids=ids, kernel="rounded")
    assert not decoder.layers[0].mlp.down.weight.any()
    assert torch.isfinite(all_logits(decoder, ids)).all()


def test_stats_of_another_decoder_or_without_moments_are_refused():
    stats = observe(make_decoder(), text())
    with pytest.raises(UserError, match="needs second moments"):
        quantize_decoder(make_decoder(), "int4-g32", "gptq", stats)
    del stats["layers.1.mlp.down"]
    with pytest.raises(UserError, match="stats lack layers.1.mlp.down"):
        quantize_decoder(make_decoder(), "int4-g32", "awq", stats)
    with pytest.raises(UserError, match="cannot be smoothed"):
        smooth_decoder(make_decoder(), stats, parts=("head",))
    with pytest.raises(UserError, match="alpha is 2"):
        smooth_decoder(make_decoder(), stats, alpha=2)
    once = quantize_decoder(make_decoder(), "int4-g32", kernel="rounded")
    with pytest.raises(UserError, match="already quantized"):
        quantize_decoder(once, "int4-g32", "awq", stats)
