"""8-bit by 8-bit layers: whole numbers exact, fused as unfused, and refusals in one line."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab import kernels
from inferlab.errors import UserError
from inferlab.quant.activations import quantize_rows, static_scale
from inferlab.quant.formats import get_format
from inferlab.quant.grid import quantize
from inferlab.quant.linear8 import FP8Linear, W8A8Linear

HALF = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7}  # two roundings of the result


def weight_of(channels=40, inputs=72, seed=0):
    return torch.randn(channels, inputs, generator=torch.Generator().manual_seed(seed)) * 0.05


def rows_of(count, inputs=72, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, inputs, generator=generator).to(dtype)


@settings(max_examples=40)
@given(
    channels=st.integers(1, 70), inputs=st.integers(1, 90), count=st.integers(1, 9),
    mode=st.sampled_from(["dynamic", "static"]), dtype=st.sampled_from(list(HALF)),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_product_is_that_of_the_codes(channels, inputs, count, mode, dtype, seed):
    weight, x = weight_of(channels, inputs, seed), rows_of(count, inputs, dtype, seed)
    layer = W8A8Linear.from_weight(weight, mode=mode, input_absmax=1.5, fused=False, dtype=dtype)
    quantized = quantize(weight, get_format("int8"))
    scale = static_scale(1.5) if mode == "static" else None
    codes, scales = quantize_rows(x, torch.int8, scale)
    exact = (codes.double() * scales.double()) @ quantized.dequantize(torch.float64).t()
    assert torch.allclose(layer(x).double(), exact, rtol=HALF[dtype], atol=1e-12)


@settings(max_examples=40)
@given(
    count=st.integers(1, 9), mode=st.sampled_from(["dynamic", "static"]),
    dtype=st.sampled_from(list(HALF)), seed=st.integers(0, 99),
)  # fmt: skip
def test_fused_and_unfused_differ_by_codes_on_the_edge_alone(count, mode, dtype, seed):
    weight, x = weight_of(), rows_of(count, dtype=dtype, seed=seed)
    options = {"mode": mode, "input_absmax": 1.5, "dtype": dtype}
    fused = W8A8Linear.from_weight(weight, fused=True, **options)(x).double()
    plain = W8A8Linear.from_weight(weight, fused=False, **options)(x).double()
    # A number half-way between two codes may go either way: one step of one input.
    step = x.abs().amax().double() / 127 * weight.abs().max().double() * 1.01
    assert (fused - plain).abs().max() <= 2 * step + HALF[dtype] * plain.abs().max()
    assert ((fused - plain).abs() > HALF[dtype] * plain.abs()).double().mean() < 0.2


@pytest.mark.parametrize("fused", [True, False])
def test_one_row_is_treated_as_it_is_among_many(fused):
    layer = W8A8Linear.from_weight(weight_of(), fused=fused, dtype=torch.float32)
    x = rows_of(5)
    x[3] *= 1000
    together = layer(x)
    for index in range(5):
        assert torch.allclose(layer(x[index : index + 1])[0], together[index], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [W8A8Linear.from_weight, FP8Linear.from_weight])
@pytest.mark.parametrize("dtype", list(HALF))
def test_shapes_dtypes_and_bias(make, dtype):
    weight, bias = weight_of(), torch.randn(40)
    layer = make(weight, bias, dtype=dtype)
    x = rows_of(6, dtype=dtype).view(2, 3, 72)
    y = layer(x)
    assert y.shape == (2, 3, 40) and y.dtype == dtype
    assert torch.allclose(y - make(weight, dtype=dtype)(x), bias.to(dtype), atol=0.05)
    assert (layer.in_features, layer.out_features, layer.format.bits) == (72, 40, 8)
    assert layer(x.double()).dtype == torch.float64


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_zero_rows_give_zero_and_bad_rows_stay_theirs(mode, fused):
    layer = W8A8Linear.from_weight(
        weight_of(), mode=mode, input_absmax=2.0, fused=fused, dtype=torch.float32
    )
    assert not layer(torch.zeros(1, 72)).any() and not layer(torch.zeros(3, 72)).any()
    x = rows_of(3)
    alone = layer(x[2:])
    x[0, 5] = math.nan
    x[1, 5] = math.inf
    assert torch.allclose(layer(x)[2:], alone, rtol=1e-4, atol=1e-6)
    layer(x[:1])  # no error at a step, whatever comes out


@pytest.mark.parametrize("dtype", list(HALF))
def test_zero_weights_are_exact(dtype):
    x = rows_of(2, dtype=dtype)
    assert not W8A8Linear.from_weight(torch.zeros(8, 72), dtype=dtype)(x).any()
    assert not FP8Linear.from_weight(torch.zeros(8, 72), dtype=dtype)(x).any()


@pytest.mark.parametrize("scaling", ["tensor", "row"])
@pytest.mark.parametrize("count", [1, 4])
def test_emulated_fp8_rounds_both_sides_and_says_so(scaling, count):
    weight, x = weight_of(), rows_of(count)
    weight[3] *= 50
    layer = FP8Linear.from_weight(weight, scaling=scaling, dtype=torch.float32)
    assert layer.emulated
    together = scaling == "tensor"
    codes, scales = quantize_rows(x.reshape(1, -1) if together else x, torch.float8_e4m3fn)
    x8 = (codes.double() * scales.double()).view(x.shape)
    codes, scales = quantize_rows(
        weight.reshape(1, -1) if together else weight, torch.float8_e4m3fn
    )
    w8 = (codes.double() * scales.double()).view(weight.shape)
    found = layer(x).double()
    # sums in float32 in another order
    size = x8.abs() @ w8.abs().t()
    assert ((found - x8 @ w8.t()).abs() <= 80 * 2.0**-23 * size).all()


def test_row_scales_serve_a_small_channel_better_than_one_for_all():
    weight = weight_of()
    weight[0] *= 1e-5  # under one scale, below the smallest number of E4M3
    x = rows_of(16)
    exact = x @ weight[0]
    error = {}
    for scaling in ("tensor", "row"):
        y = FP8Linear.from_weight(weight, scaling=scaling, dtype=torch.float32)(x)[:, 0]
        error[scaling] = ((y - exact).norm() / exact.norm()).item()
    assert error["row"] < 0.06 < error["tensor"]


def test_a_gpu_without_fp8_and_a_cpu_say_so(monkeypatch):
    with pytest.raises(UserError, match="cpu has no FP8 units: use emulated=True"):
        FP8Linear.from_weight(weight_of(), emulated=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    with pytest.raises(UserError, match="8.9 or newer"):
        FP8Linear.from_weight(weight_of(), device="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    with pytest.raises(UserError, match="multiples of 16, not 72 and 40"):
        FP8Linear.from_weight(weight_of(), device="cuda")
    with pytest.raises(UserError, match="written in bfloat16"):
        FP8Linear.from_weight(weight_of(64, 64), device="cuda", dtype=torch.float16)
    with pytest.raises(UserError, match="multiples of 8, not 70 and 40"):
        W8A8Linear.from_weight(weight_of(40, 70), device="cuda")


def test_a_gpu_without_triton_can_still_round_unfused(monkeypatch):
    layer = W8A8Linear.from_weight(weight_of(), dtype=torch.float32)
    from inferlab.quant.linear8 import _IntMmProduct

    quantized = quantize(weight_of(), get_format("int8"))
    layer.product = _IntMmProduct(quantized, torch.float32, "cpu")
    monkeypatch.setattr(kernels, "why_unavailable", lambda _device: "no triton here")
    with pytest.raises(UserError, match="no triton here; or use fused=False"):
        layer(rows_of(2))
    layer.fused = False
    plain = W8A8Linear.from_weight(weight_of(), fused=False, dtype=torch.float32)
    assert torch.allclose(layer(rows_of(20)), plain(rows_of(20)), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "sometimes"}, "unknown mode 'sometimes'; known: dynamic, static"),
        ({"mode": "static"}, "need input_absmax"),
        ({"mode": "static", "input_absmax": math.nan}, "check the calibration"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        W8A8Linear.from_weight(weight_of(), **options)


def test_wrong_weights_are_refused():
    with pytest.raises(UserError, match="takes weights in int8, not int8-asym"):
        W8A8Linear(quantize(weight_of(), get_format("int8-asym")))
    bad = weight_of()
    bad[0, 0] = math.nan
    for make in (W8A8Linear.from_weight, FP8Linear.from_weight):
        with pytest.raises(UserError, match="inf"):
            make(bad)
    with pytest.raises(UserError, match="unknown scaling 'block'"):
        FP8Linear.from_weight(weight_of(), scaling="block")


def test_no_warning_of_torch_reaches_the_reader(recwarn):
    W8A8Linear.from_weight(weight_of())(rows_of(1, dtype=torch.bfloat16))
    assert not recwarn.list
