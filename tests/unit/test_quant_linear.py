"""Layers on codes: the same product as dequantizing first, from fewer bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.quant.formats import FORMATS, WeightFormat, get_format
from inferlab.quant.grid import quantize
from inferlab.quant.linear import (
    DequantizingLinear,
    PackedInt4Linear,
    PackedInt8Linear,
    QuantizedLinear,
    RoundedLinear,
    make_linear,
)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1.2e-2}


def example(name="int4-g32", outputs=48, inputs=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.05 + 0.01
    return quantize(weight, FORMATS[name])


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    kernel=st.sampled_from(["auto", "packed", "naive", "rounded"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    outputs=st.sampled_from([16, 48, 80, 128]),
    inputs=st.sampled_from([128, 256, 384]),
    rows=st.integers(1, 37),
    seed=st.integers(0, 2**31),
)
def test_every_kernel_gives_the_dequantized_product(
    name, kernel, dtype, outputs, inputs, rows, seed
):
    quantized = example(name, outputs, inputs, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    layer = make_linear(quantized, bias, kernel, dtype)
    expected = x.float() @ quantized.dequantize().t() + bias.float()
    found = layer(x)
    assert found.dtype == dtype and found.shape == (rows, outputs)
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    kernel=st.sampled_from(["packed", "naive", "rounded"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_the_codes_come_back_out_of_every_layer(name, kernel, dtype, seed):
    quantized = example(name, seed=seed)
    found = make_linear(quantized, None, kernel, dtype).to_quantized()
    assert torch.equal(found.codes, quantized.codes) and found.format == quantized.format
    assert torch.equal(found.scales, quantized.scales)
    assert torch.equal(found.dequantize(), quantized.dequantize())


@pytest.mark.parametrize("kernel", ["packed", "naive", "rounded"])
@pytest.mark.parametrize("name", ["int8", "int4-g32"])
def test_leading_axes_dtype_and_views_pass_through(name, kernel):
    layer = make_linear(example(name), None, kernel, torch.bfloat16)
    x = torch.randn(2, 5, 128).bfloat16()
    assert layer(x).shape == (2, 5, 48)
    assert torch.equal(layer(x[:, -1]), layer(x[:, -1].clone()))  # the head sees such a view
    assert layer(x.float()).dtype == torch.float32
    assert (layer.in_features, layer.out_features, layer.format.name) == (128, 48, name)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_packed_layers_hold_no_more_bytes_than_the_format_says(name):
    quantized = example(name, 64, 512)
    says = quantized.format.matrix_bytes(64, 512)
    held = make_linear(quantized, None, "packed", torch.bfloat16).weight_bytes()
    spread = 4 * 64 * 2 if name in ("int8-tensor", "int4-channel", "int8-asym") else 0
    padding = 64 * 2 * 512 // 32 if name == "int4-g32-sym" else 0  # the kernel wants a zero
    assert says <= held <= says + spread + padding


def test_the_naive_layer_keeps_int4_codes_two_a_byte():
    layer = make_linear(example("int4-g32", 64, 128), None, "naive", torch.bfloat16)
    assert isinstance(layer, DequantizingLinear) and layer.codes.shape == (64, 64)
    assert layer.weight_bytes() == get_format("int4-g32").matrix_bytes(64, 128)
    odd = quantize(torch.randn(4, 33), WeightFormat("odd", 4, None, False))
    layer = make_linear(odd, None, "naive", torch.float32)
    assert torch.equal(layer.unpacked(), odd.codes)


def test_auto_takes_the_packed_kernel_of_a_cpu():
    assert isinstance(make_linear(example("int8")), PackedInt8Linear)
    assert isinstance(make_linear(example("int4-g64")), PackedInt4Linear)
    assert isinstance(make_linear(example("int8"), kernel="rounded"), RoundedLinear)


def test_int4_kernels_get_the_grid_without_another_rounding():
    quantized = example("int4-g32", 16, 128)
    layer = PackedInt4Linear(quantized, dtype=torch.float32)
    both = layer.scales_and_zeros  # [groups, N, 2]
    tiled = (quantized.codes.float() + 8).unflatten(1, (4, 32))
    scales, zeros = (both[..., i].t()[..., None] for i in (0, 1))
    weight = (tiled - 8) * scales + zeros
    assert torch.equal(weight.flatten(1), quantized.dequantize())


@pytest.mark.parametrize(
    ("quantized", "kernel", "device", "says"),
    [
        (example(), "cutlass", "cpu", "known: auto, packed, naive"),
        (example(), "packed", "cuda", "runs on a CPU only"),
        (example(outputs=24), "packed", "cpu", "multiples of 16, not 24: keep this layer"),
        (
            quantize(torch.randn(16, 48), WeightFormat("int4-g16", 4, 16, False)),
            "packed", "cpu", "groups of 32, 64, 128 or 256 inputs, not 16",
        ),
        (
            quantize(torch.randn(16, 48), get_format("int4-channel")),
            "packed", "cpu", "not 48: use a format with such groups",
        ),
        (quantize(torch.randn(16, 40), get_format("int8")), "packed", "cpu", "multiples of 16"),
        (
            quantize(torch.randn(16, 64), WeightFormat("int8-g32", 8, 32, True)),
            "packed", "cpu", "one scale a channel",
        ),
        (
            quantize(torch.randn(16, 64), WeightFormat("int6", 6, 32, True)),
            "packed", "cpu", "takes 4 bits, not int6",
        ),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_says_what_to_use(quantized, kernel, device, says):
    with pytest.raises(UserError, match=says) as caught:
        make_linear(quantized, None, kernel, device=device)
    assert "\n" not in str(caught.value)


def test_a_kernel_whose_module_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "inferlab.quant.torchao_linear", None)
    with pytest.raises(UserError, match="kernel torchao cannot be loaded"):
        make_linear(example(), None, "torchao")


@pytest.mark.parametrize("name", ["int8", "int4-g32", "int4-g64"])
def test_torchao_multiplies_by_the_same_weights(name):
    pytest.importorskip("torchao")
    quantized = example(name, 64, 128)
    layer = make_linear(quantized, torch.ones(64), "torchao")
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.float() @ quantized.dequantize().t() + 1
    assert (layer(x).float() - expected).norm() / expected.norm() < 0.02
    assert isinstance(layer, QuantizedLinear) and layer.to_quantized() is quantized
    assert layer.weight_bytes() == quantized.format.matrix_bytes(64, 128)


def test_torchao_says_which_formats_it_has():
    pytest.importorskip("torchao")
    with pytest.raises(UserError, match="no kernel for int8-tensor"):
        make_linear(example("int8-tensor"), None, "torchao")
    with pytest.raises(UserError, match="bfloat16"):
        make_linear(example(), None, "torchao", torch.float32)
