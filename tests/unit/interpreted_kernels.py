"""The Triton kernels in Triton's interpreter, on a CPU; `test_kernels.py` runs this file.

TRITON_INTERPRET=1 must be there before triton is imported and would change what other tests see,
so these have a process of their own. Speed and the parts in assembly are left to tests/gpu.
"""

import os

import pytest
import torch
from product_bounds import check

from inferlab.errors import UserError
from inferlab.kernels import quantize_rows as rows_kernel
from inferlab.kernels import reference, tiles, w4a16, w8a16
from inferlab.quant import activations
from inferlab.quant.formats import FORMATS, WeightFormat
from inferlab.quant.grid import quantize
from inferlab.quant.linear import make_linear
from inferlab.quant.linear8 import W8A8Linear, _IntMmProduct

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_kernels.py instead"
ODD = WeightFormat("int4-g48", 4, 48, False)


def weights(name, channels, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, inputs, generator=generator) * 0.05 + 0.01
    return quantize(weight, FORMATS[name])


def rows(count, inputs, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, inputs, generator=generator).bfloat16()


@pytest.mark.parametrize(
    ("name", "channels", "inputs", "count"),
    [
        ("int4-g32", 70, 288, 3), ("int4-g32-sym", 33, 160, 17), ("int4-g64", 130, 320, 1),
        ("int4-g128", 129, 384, 9), ("int4-channel", 40, 300, 5), ("int4-g32", 16, 96, 257),
        ("int8", 70, 300, 3), ("int8-asym", 65, 160, 2), ("int8-tensor", 16, 48, 33),
        ("int8", 20, 130, 257),
    ],
)  # fmt: skip
def test_layers_multiply_within_rounding_on_awkward_shapes(name, channels, inputs, count):
    quantized, x = weights(name, channels, inputs), rows(count, inputs)
    layer = make_linear(quantized, None, "triton")
    exact = quantized.dequantize(torch.float64)
    check(layer(x), x, exact, rounds_weights=name.startswith("int4") or count > tiles.WIDEST)
    assert torch.equal(layer.to_quantized().codes, quantized.codes)
    assert torch.equal(layer.to_quantized().scales, quantized.scales)


@pytest.mark.parametrize("splits", [1, 2, 3, 5])
def test_every_split_adds_up_and_leaves_the_counters_at_zero(splits):
    quantized, x = weights("int4-g64", 70, 640), rows(3, 640)
    words = reference.pack_int4(quantized.codes)
    grids = reference.pack_grids(quantized.scales, quantized.offsets, 64)
    tile = tiles.Tile(block_n=64, block_m=8, num_warps=4, num_stages=2, splits=splits)
    for _ in range(2):
        found = w4a16.multiply(x, words, grids, 64, tile)
        check(found, x, quantized.dequantize(torch.float64), rounds_weights=True)
    assert not tiles.counters(x).any()
    found = w8a16.multiply(
        x, reference.pack_int8(quantized.codes), quantized.scales[:, 0].contiguous(), None, tile
    )
    exact = quantized.codes.double() * quantized.scales[:, :1].double()
    check(found, x, exact, rounds_weights=False)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g128", "int4-channel"])
def test_dequantizing_rounds_each_weight_once(name):
    quantized = weights(name, 37, 384)
    size = quantized.format.group_size or 0
    words = reference.pack_int4(quantized.codes)
    grids = reference.pack_grids(quantized.scales, quantized.offsets, size)
    found = w4a16.dequantize(words, grids, 384, size)
    assert torch.equal(found, quantized.dequantize(torch.float64).bfloat16())


@pytest.mark.parametrize("name", ["int8", "int8-asym"])
def test_dequantizing_int8_rounds_each_weight_once(name):
    quantized = weights(name, 70, 300)
    layer = make_linear(quantized, None, "triton")
    found = w8a16.dequantize(layer.words, layer.scales, layer.offsets, 300)
    assert torch.equal(found, quantized.dequantize(torch.float32).bfloat16())


def test_leading_dimensions_and_bias():
    quantized, bias = weights("int4-g32", 16, 64), torch.randn(16)
    x = rows(6, 64).view(2, 3, 64)
    layer = make_linear(quantized, bias, "triton")
    plain = make_linear(quantized, None, "triton")
    assert layer(x).shape == (2, 3, 16)
    assert torch.equal(layer(x), plain(x) + bias.bfloat16())


def test_extreme_codes():
    """Both ends of the codes, zeros, and rows that are all alike."""
    for bits, name in ((4, "int4-g32"), (8, "int8")):
        half = 2 ** (bits - 1)
        quantized = weights(name, 5, 128)
        ends = torch.tensor([-half, half - 1, 0, -1, 1], dtype=torch.int8)
        quantized.codes.copy_(ends[:, None].expand(5, 128))
        x = rows(2, 128)
        layer = make_linear(quantized, None, "triton")
        check(layer(x), x, quantized.dequantize(torch.float64), rounds_weights=bits == 4)


def test_what_the_kernels_do_not_take_is_refused():
    generator = torch.Generator().manual_seed(0)
    odd = quantize(torch.randn(4, 96, generator=generator), ODD)
    with pytest.raises(UserError, match="groups of 32, 64 or multiples of 128 inputs, not 48"):
        make_linear(odd, None, "triton")
    with pytest.raises(UserError, match="multiplies in bfloat16"):
        make_linear(weights("int8", 4, 32), None, "triton", torch.float32)
    grouped = quantize(torch.randn(4, 64), WeightFormat("int8-g32", 8, 32, True))
    with pytest.raises(UserError, match="one scale a channel"):
        make_linear(grouped, None, "triton")


@pytest.mark.parametrize("count", [1, 5, 33])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [None, 0.01])
def test_rows_are_rounded_as_operation_by_operation(count, source, scale):
    x = (rows(count, 300).float() * 3).to(source)
    x[0, 7] = 0
    if count > 1:
        x[1] = 0
        x[2, 3] = 1e30
    given = None if scale is None else torch.full((1,), scale)
    found, scales = rows_kernel.quantize_rows(x, torch.int8, given)
    expected, expected_scales = activations.quantize_rows(x, torch.int8, scale)
    assert torch.equal(found, expected) and torch.equal(scales, expected_scales)


def test_fp8_scales_are_those_of_the_chain():
    # The interpreter's own conversion to 8-bit floats carries wrongly: tests/gpu compares codes.
    x = rows(4, 80)
    _, scales = rows_kernel.quantize_rows(x, torch.float8_e4m3fn)
    assert torch.equal(scales, activations.quantize_rows(x, torch.float8_e4m3fn)[1])


def test_a_norm_is_taken_along():
    x, weight = rows(3, 200), rows(1, 200, seed=4)[0]
    normed = torch.nn.functional.rms_norm(x, (200,), weight, 1e-5)
    found, scales = rows_kernel.quantize_rows(x, norm_weight=weight, eps=1e-5)
    expected, expected_scales = activations.quantize_rows(normed)
    # The sum of squares in another order: the norm may differ by one step of bfloat16.
    assert torch.allclose(scales, expected_scales, rtol=2.0**-7, atol=0)
    assert (found.int() - expected.int()).abs().max() <= 2


def test_a_row_too_long_for_a_program_is_refused():
    with pytest.raises(UserError, match="too long for one program"):
        rows_kernel.quantize_rows(torch.zeros(1, 2**16 + 1))


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_gpu_way_of_w8a8_gives_what_the_cpu_way_gives(mode, count):
    quantized, x = weights("int8", 72, 136), rows(count, 136)
    layer = W8A8Linear(quantized, mode=mode, input_absmax=2.5)
    layer.fused = False
    expected = layer(x)
    layer.product = _IntMmProduct(quantized, torch.bfloat16, "cpu")
    for fused in (True, False):
        layer.fused = fused
        # the same whole numbers; the scales are applied in another order: one step of bfloat16
        assert torch.allclose(layer(x).float(), expected.float(), rtol=2.0**-7, atol=0)
