"""The kernels for low bits on a CUDA device: exact within rounding, repeatable, and worth it.

Ratios are of medians over CUDA graph replays with wide bands: they catch a kernel that lost its
way, not a slow afternoon. Shapes of speed are those of Llama-3.1-8B.
"""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from product_bounds import check  # noqa: E402

from inferlab import kernels  # noqa: E402
from inferlab.backends import load_backend  # noqa: E402
from inferlab.decoding.generate import generate  # noqa: E402
from inferlab.decoding.steps import make_stepper  # noqa: E402
from inferlab.errors import UserError  # noqa: E402
from inferlab.kernels import reference  # noqa: E402
from inferlab.quant import activations  # noqa: E402
from inferlab.quant.formats import FORMATS  # noqa: E402
from inferlab.quant.grid import Quantized, quantize  # noqa: E402
from inferlab.quant.linear import make_linear  # noqa: E402
from inferlab.quant.linear8 import FP8Linear, W8A8Linear  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FP8 = torch.float8_e4m3fn
INT4 = ("int4-g32", "int4-g32-sym", "int4-g64", "int4-g128", "int4-channel")
GATE_UP, DOWN = (28672, 4096), (4096, 14336)  # N, K


@pytest.fixture(autouse=True)
def can_run():
    if why := kernels.why_unavailable("cuda"):
        pytest.skip(why)


def weight_of(channels, inputs, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(channels, inputs, generator=generator, device="cuda") * 0.05 + 0.01


def rows_of(count, inputs, seed=1):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(count, inputs, generator=generator, device="cuda").bfloat16()


def triton_linear(name, channels, inputs, seed=0):
    quantized = quantize(weight_of(channels, inputs, seed), FORMATS[name])
    return make_linear(quantized, None, "triton", torch.bfloat16, "cuda"), quantized


@pytest.mark.parametrize("name", [*INT4, "int8", "int8-asym", "int8-tensor"])
@pytest.mark.parametrize(
    ("channels", "inputs", "rows"),
    [
        (64, 128, 1), (70, 320, 3), (576, 576, 8), (960, 576, 9), (129, 640, 16), (4096, 1536, 17),
        (61, 384, 33), (257, 448, 65), (4096, 4096, 129), (48, 192, 256), (72, 256, 257),
    ],
)  # fmt: skip
def test_products_are_exact_within_rounding(name, channels, inputs, rows):
    size = FORMATS[name].group_size
    if size and inputs % size:
        inputs += size - inputs % size
    layer, quantized = triton_linear(name, channels, inputs)
    x = rows_of(rows, inputs)
    exact = quantized.dequantize(torch.float64)
    found = layer(x)
    check(found, x, exact, rounds_weights=name.startswith("int4") or rows > 256)
    assert torch.equal(layer(x), found), "the same sums in another order"


@pytest.mark.parametrize("name", INT4[:1] + INT4[3:])
def test_dequantizing_rounds_each_weight_once(name):
    """The assembly against PyTorch, for every pair of neighbouring codes."""
    from inferlab.kernels import w4a16

    layer, quantized = triton_linear(name, 300, 640)
    codes = torch.arange(300 * 640, device="cuda").view(300, 640) * 37 // 16 % 16 - 8
    quantized.codes.copy_(codes.to(torch.int8))
    words = reference.pack_int4(quantized.codes)
    found = w4a16.dequantize(words, layer.grids, 640, layer.group_size)
    assert torch.equal(found, quantized.dequantize(torch.float64).bfloat16())


@pytest.mark.parametrize("kind", ["int4-g64", "int8"])
@pytest.mark.parametrize("rows", [1, 16, 64, 200])
def test_every_candidate_tile_gives_the_product(kind, rows):
    from inferlab.kernels import tiles, w4a16, w8a16

    layer, quantized = triton_linear(kind, 1000, 2048)
    x, exact = rows_of(rows, 2048), quantized.dequantize(torch.float64)
    for tile in tiles.candidates(rows, 1000, 2048, 132):
        if kind == "int8":
            found = w8a16.multiply(x, layer.words, layer.scales, None, tile)
        else:
            found = w4a16.multiply(x, layer.words, layer.grids, 64, tile)
        check(found, x, exact, rounds_weights=kind != "int8")
    assert not tiles.counters(x).any()


def test_a_captured_graph_replays_the_product():
    layer, _ = triton_linear("int4-g32", 4096, 4096)
    x = rows_of(1, 4096)
    expected = layer(x)  # also chooses the tile
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = layer(x)
    for seed in range(3):
        fresh = rows_of(1, 4096, seed)
        x.copy_(fresh)
        graph.replay()
        assert torch.equal(found, layer(fresh))
    assert expected.shape == found.shape


def test_a_shape_seen_first_in_a_graph_is_not_timed_there():
    layer, quantized = triton_linear("int4-g64", 1111, 1216)
    x = rows_of(2, 1216)
    warm, _ = triton_linear("int4-g64", 4096, 1216)
    warm(x)  # compiles; another shape
    layer(rows_of(32, 1216))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = layer(x)
    graph.replay()
    check(found, x, quantized.dequantize(torch.float64), rounds_weights=True)


@pytest.mark.parametrize("quant", [None, "int4-g32", "int8"])
def test_graphed_steps_give_the_tokens_of_plain_ones(quant):
    backend = load_backend("torch", "smollm2-135m", "bfloat16", "cuda", quant=quant)
    prompts = [[1, 2, 3, 4], [5, 6, 7, 8]]
    expected = generate(backend.decoder, prompts, 12, "bucketed")
    graphed = make_stepper(backend.decoder, "graph")
    cache = graphed.new_cache("static", 2, 15)
    for _ in range(3):
        assert generate(graphed, prompts, 12, cache) == expected


@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("inputs", [576, 4096, 14336, 35])
@pytest.mark.parametrize("dtype", [torch.int8, FP8])
@pytest.mark.parametrize("scale", [None, 0.01])
def test_rows_are_rounded_as_operation_by_operation(count, inputs, dtype, scale):
    from inferlab.kernels.quantize_rows import quantize_rows

    if dtype == FP8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no FP8 on this GPU")
    x = rows_of(count, inputs) * 3
    x[-1] = 0
    given = None if scale is None else torch.full((1,), scale, device="cuda")
    found, scales = quantize_rows(x, dtype, given)
    expected, expected_scales = activations.quantize_rows(x, dtype, given)
    assert torch.equal(found.float(), expected.float())
    assert torch.allclose(scales, expected_scales, rtol=2.0**-22, atol=0)


def test_a_norm_is_taken_along():
    from inferlab.kernels.quantize_rows import quantize_rows

    x, weight = rows_of(5, 4096), rows_of(1, 4096, 3)[0]
    normed = torch.nn.functional.rms_norm(x, (4096,), weight, 1e-5)
    found, scales = quantize_rows(x, norm_weight=weight, eps=1e-5)
    expected, expected_scales = activations.quantize_rows(normed)
    assert torch.allclose(scales, expected_scales, rtol=2.0**-7, atol=0)
    assert (found.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("count", [1, 16, 17, 200])
def test_w8a8_is_the_product_of_the_codes(mode, fused, count):
    weight, x = weight_of(960, 576), rows_of(count, 576)
    layer = W8A8Linear.from_weight(weight, mode=mode, input_absmax=3.0, fused=fused, device="cuda")
    scale = 3.0 / 127 if mode == "static" else None
    codes, scales = activations.quantize_rows(x, torch.int8, scale)
    quantized = quantize(weight, FORMATS["int8"])
    exact = (codes.double() * scales.double()) @ quantized.dequantize(torch.float64).t()
    assert torch.allclose(layer(x).double(), exact, rtol=2.0**-7, atol=1e-9)


@pytest.mark.parametrize("scaling", ["tensor", "row"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("count", [1, 5, 16, 130])
def test_fp8_is_what_the_emulation_says(scaling, fused, count):
    if torch.cuda.get_device_capability() < (8, 9):
        with pytest.raises(UserError, match="8.9 or newer"):
            FP8Linear.from_weight(weight_of(64, 64), device="cuda")
        return
    weight, x = weight_of(960, 576), rows_of(count, 576)
    layer = FP8Linear.from_weight(weight, scaling=scaling, fused=fused, device="cuda")
    assert not layer.emulated
    shadow = FP8Linear.from_weight(weight.cpu(), scaling=scaling, dtype=torch.float32)
    expected = shadow(x.cpu().float()).cuda().double()
    # FP8 units keep about 14 bits of a sum: 2**-13 of the sum of magnitudes, then bfloat16
    size = x.double().abs() @ weight.double().abs().t()
    error = (layer(x).double() - expected).abs()
    assert (error <= 1.1 * (2.0**-12 * size + 2.0**-8 * expected.abs())).all()


def median_s(work):
    """Seconds of one call of `work`, the launch aside: CUDA graph replays."""
    import triton

    return triton.testing.do_bench_cudagraph(work, rep=50, return_mode="median") / 1e3


def random_linear(name, shape):
    """A layer of that shape with random codes: quantizing it would take longer than timing it."""
    format, (channels, inputs) = FORMATS[name], shape
    first, last = format.code_range
    codes = torch.randint(first, last + 1, shape, dtype=torch.int8, device="cuda")
    groups = format.num_groups(inputs)
    scales = torch.full((channels, groups), 0.01, device="cuda").bfloat16().float()
    offsets = None if format.symmetric else torch.zeros_like(scales)
    quantized = Quantized(codes, scales, offsets, format)
    return make_linear(quantized, None, "triton", torch.bfloat16, "cuda")


def rotating(layers, x):
    """Multiply by the next of several layers at each call, so that no cache holds the weights."""

    def work():
        for layer in layers:
            layer(x)

    return work


@pytest.mark.parametrize("shape", [GATE_UP, DOWN], ids=["gate_up", "down"])
@pytest.mark.parametrize(
    ("name", "rows", "least"),
    [
        ("int4-g128", 1, 2.0), ("int4-g32", 1, 1.8), ("int8", 1, 1.3), ("int4-g32", 16, 1.4),
        ("int4-g128", 16, 1.5),
    ],
)  # fmt: skip
def test_few_rows_are_faster_than_bfloat16(shape, name, rows, least):
    copies = 4  # several hundred megabytes: more than any cache
    x = rows_of(rows, shape[1])
    plain = [weight_of(*shape, seed).bfloat16() for seed in range(copies)]
    layers = [random_linear(name, shape) for _ in range(copies)]
    base_s = median_s(rotating([lambda x, w=w: torch.nn.functional.linear(x, w) for w in plain], x))
    ours_s = median_s(rotating(layers, x))
    read = sum(layer.weight_bytes() for layer in layers) / ours_s
    print(f"{name} {rows} rows: {base_s / ours_s:.2f} times bf16, {read / 1e12:.2f} TB/s")
    assert base_s / ours_s > least


def test_one_row_reads_packed_weights_at_most_of_the_bandwidth():
    """The aim is 85 % of what a plain sum over as many bytes reaches; the band is wide."""
    layers = [random_linear("int4-g128", GATE_UP) for _ in range(4)]
    bytes_read = sum(layer.weight_bytes() for layer in layers)
    data = torch.ones(bytes_read // 4, device="cuda")
    ceiling = bytes_read / median_s(data.sum)
    reached = bytes_read / median_s(rotating(layers, rows_of(1, GATE_UP[1])))
    print(f"{reached / ceiling:.0%} of {ceiling / 1e12:.2f} TB/s")
    assert 0.6 < reached / ceiling < 1.1


def test_one_pass_over_activations_beats_a_chain():
    from inferlab.kernels.quantize_rows import quantize_rows

    x = rows_of(256, 4096)
    chain_s = median_s(lambda: activations.quantize_rows(x))
    assert chain_s / median_s(lambda: quantize_rows(x)) > 1.5


def test_fp8_decode_products_are_faster_than_bfloat16():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no FP8 on this GPU")
    x, copies = rows_of(1, GATE_UP[1]), 4
    plain = [weight_of(*GATE_UP, seed).bfloat16() for seed in range(copies)]
    layers = [FP8Linear.from_weight(weight, device="cuda") for weight in plain]
    base_s = median_s(rotating([lambda x, w=w: torch.nn.functional.linear(x, w) for w in plain], x))
    ratio = base_s / median_s(rotating(layers, x))
    print(f"FP8, one row: {ratio:.2f} times bf16")
    assert ratio > 1.2 and math.isfinite(ratio)
