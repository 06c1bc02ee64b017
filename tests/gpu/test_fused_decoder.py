"""The fused kernels and FusedDecoder on a CUDA device: exact within rounding, near the bandwidth.

Speed is judged by medians over CUDA graph replays, against a plain sum over as many bytes. Shapes
of speed are those of Llama-3.1-8B; the bands are wider than the aims, which are printed.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from fused_examples import (  # noqa: E402
    DTYPES,
    ROTATIONS,
    cache_of,
    check_norm,
    check_product,
    check_rotation,
    check_swiglu,
    normal,
    random_decoder,
)
from tiny_models import TINY  # noqa: E402

from inferlab import kernels  # noqa: E402
from inferlab.decoding.generate import generate  # noqa: E402
from inferlab.decoding.graphs import captured  # noqa: E402
from inferlab.hardware.probes import read_bandwidth  # noqa: E402
from inferlab.kvcache.view import StoreView  # noqa: E402
from inferlab.models.config import get_config  # noqa: E402
from inferlab.models.cost import decode_cost  # noqa: E402
from inferlab.models.fused import FusedDecoder  # noqa: E402
from inferlab.models.load import load_decoder  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
QKV, OUT, GATE_UP, DOWN = (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)  # N, K
HIDDEN, INNER, NUM_Q, NUM_KV, HEAD = 4096, 14336, 32, 8, 128
AIM, LEAST = 0.85, 0.70  # of the bandwidth of a plain sum
STEP_AIM, STEP_LEAST = 0.80, 0.65  # of a step's floor
PROMPTS = [[5, 9, 2, 33, 17, 4, 8] * 5, [7], [12, 13, 14]]


@pytest.fixture(autouse=True)
def can_run():
    if why := kernels.why_unavailable("cuda"):
        pytest.skip(why)


@pytest.fixture(params=["together", "one by one"])
def overlap(request, monkeypatch):
    """Kernels that start early, where the GPU can, and kernels that do not."""
    monkeypatch.setenv("INFERLAB_OVERLAP", "1" if request.param == "together" else "0")


@pytest.mark.usefixtures("overlap")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(
    ("rows", "size"), [(1, 576), (3, 35), (1, 4096), (1025, 20), (1500, 576), (2000, 5120)]
)
def test_norm(dtype, rows, size, add):
    from inferlab.kernels.norm import add_rms_norm

    check_norm(add_rms_norm, dtype, rows, size, add, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner"), [(1, 1536), (3, 51), (5, 2049), (700, 14336)])
def test_swiglu(dtype, rows, inner):
    from inferlab.kernels.swiglu import swiglu

    check_swiglu(swiglu, dtype, rows, inner, "cuda")


@pytest.mark.usefixtures("overlap")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("shape", [*ROTATIONS, (7, 11, 32, 8, 128, True)])
def test_rotate_and_store(dtype, dense, shape):
    from inferlab.kernels.rope_store import rotate_and_store

    check_rotation(rotate_and_store, dtype, dense, shape, "cuda")


@pytest.mark.usefixtures("overlap")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(1, 70, 576), (3, 33, 100), (8, 64, 35), (9, 1536, 576), (16, 960, 576), (1, *QKV), (16, *OUT),
     (17, 48, 64), (4, 61, 14336)],
)  # fmt: skip
@pytest.mark.parametrize("extras", [(), ("residual",), ("gated", "bias", "residual")])
def test_products(dtype, shape, extras):
    from inferlab.kernels.linear import small_linear

    check_product(small_linear, dtype, shape, extras, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("rows", [1, 16])
def test_every_candidate_tile_gives_the_product(dtype, gated, rows):
    from inferlab.kernels import linear, tiles

    extras = ("residual", "gated") if gated else ("residual",)
    for tile in linear.candidates(rows, 1000, 2048, 132, dtype.itemsize, gated):
        shape = (rows, 1000, 2048)
        check_product(linear.small_linear, dtype, shape, extras, "cuda", tile=tile)
    assert not tiles.counters(torch.empty(0, device="cuda")).any()


def test_a_chain_in_a_graph_gives_the_same_with_and_without_overlap(monkeypatch):
    """Each kernel reads what the one before wrote; repeated, so that a race would show."""
    from inferlab.kernels.linear import small_linear
    from inferlab.kernels.norm import add_rms_norm

    factory = {"dtype": torch.bfloat16, "device": "cuda"}
    weights = [normal(1024, 1024, seed=seed, scale=0.03, **factory) for seed in range(12)]
    scale, x = normal(1024, seed=20, **factory), normal(2, 1024, seed=21, **factory)

    def chain():
        stream = x
        for weight in weights:
            normed, _ = add_rms_norm(stream, None, scale, 1e-5)
            stream = small_linear(normed, weight, residual=stream)
        return stream

    found = {}
    for switch in ("0", "1"):
        monkeypatch.setenv("INFERLAB_OVERLAP", switch)
        found[switch] = [chain().clone()]
        replay = captured(chain, "cuda")
        found[switch] += [replay().clone() for _ in range(200)]
    torch.cuda.synchronize()
    first = found["0"][0]
    assert all(torch.equal(first, again) for again in found["0"] + found["1"])


@pytest.mark.usefixtures("overlap")
@pytest.mark.parametrize("kind", ["bucketed", "paged"])
@pytest.mark.parametrize("name", ["llama", "llama-untied", "llama-rope-scaled", "qwen2"])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], [[token] for token in range(20)]])
def test_tokens_in_float32_are_those_of_the_decoder(name, prompts, kind):
    decoder = random_decoder(TINY[name], device="cuda")
    expected = generate(decoder, prompts, 24)
    cache = cache_of(kind, decoder, len(prompts), max(map(len, prompts)) + 24)
    for _ in range(2):
        assert generate(FusedDecoder(decoder), prompts, 24, cache) == expected


@pytest.mark.parametrize("kind", ["bucketed", "paged"])
def test_the_real_model_in_float32(kind):
    decoder = load_decoder("smollm2-135m", "float32", "cuda")
    prompts = [list(range(100, 150)), [7, 8, 9], list(range(2000, 2300))]
    expected = generate(decoder, prompts, 40)
    cache = cache_of(kind, decoder, 3, 340, block_size=16)
    assert generate(FusedDecoder(decoder), prompts, 40, cache) == expected


@torch.inference_mode()
def graphed_step(fused, batch, context):
    """A replayable step of `batch` sequences of random contents, and its logits."""
    cache = cache_of("bucketed", fused.decoder, batch, context + 16)
    for store in (*cache.keys, *cache.values):
        store.normal_()
    token_ids = torch.full((batch, 1), 5, device="cuda")
    positions = torch.full((batch, 1), context - 1, device="cuda")
    cache.begin(positions, None)
    return captured(lambda: fused.step(token_ids, cache, positions), "cuda"), cache


def test_a_replayed_step_is_the_step():
    decoder = load_decoder("smollm2-135m", "bfloat16", "cuda")
    fused = FusedDecoder(decoder)
    replay, cache = graphed_step(fused, 2, 300)
    with torch.inference_mode():
        expected = fused.step(
            torch.full((2, 1), 5, device="cuda"), cache, torch.full((2, 1), 299, device="cuda")
        )
        assert all(torch.equal(replay(), expected) for _ in range(50))


def median_s(work):
    """Seconds of one call of `work`, the launch aside: CUDA graph replays."""
    import triton

    return triton.testing.do_bench_cudagraph(work, rep=50, return_mode="median") / 1e3


def share_of_bandwidth(name, work, num_bytes):
    """`work` moves `num_bytes`, more than any cache holds: its rate over that of a plain sum."""
    data = torch.ones(2**28, device="cuda")
    ceiling = data.numel() * 4 / median_s(data.sum)
    reached = num_bytes / median_s(work)
    print(f"{name}: {reached / ceiling:.0%} of {ceiling / 1e12:.2f} TB/s (aim {AIM:.0%})")
    assert LEAST < reached / ceiling < 1.2


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize(
    ("name", "shape"), [("qkv", QKV), ("out", OUT), ("gate_up", GATE_UP), ("down", DOWN)]
)
def test_products_read_weights_at_most_of_the_bandwidth(name, shape, rows):
    from inferlab.kernels.linear import small_linear

    copies = max(2, 2**29 // (shape[0] * shape[1] * 2))  # more than any cache together
    factory = {"dtype": torch.bfloat16, "device": "cuda"}
    weights = [torch.randn(*shape, **factory) * 0.02 for _ in range(copies)]
    x, residual = torch.randn(rows, shape[1], **factory), torch.randn(rows, shape[0], **factory)
    gated = name == "gate_up"

    def work():
        for weight in weights:
            small_linear(x, weight, None, None if gated else residual, gated)

    small_linear(x, weights[0], None, None if gated else residual, gated)
    size = sum(weight.numel() * 2 for weight in weights)
    share_of_bandwidth(f"{name}, {rows} rows", work, size)


@pytest.mark.parametrize("operation", ["norm", "swiglu", "rotation"])
def test_passes_over_activations_reach_most_of_the_bandwidth(operation):
    from inferlab.kernels.norm import add_rms_norm
    from inferlab.kernels.rope_store import rotate_and_store
    from inferlab.kernels.swiglu import swiglu

    rows, factory = 32768, {"dtype": torch.bfloat16, "device": "cuda"}
    if operation == "norm":
        x, residual = (torch.randn(rows, HIDDEN, **factory) for _ in range(2))
        weight = torch.ones(HIDDEN, **factory)
        work, numbers = lambda: add_rms_norm(x, residual, weight, 1e-5), 4 * HIDDEN
    elif operation == "swiglu":
        gate_up = torch.randn(rows, 2 * INNER, **factory)
        work, numbers = lambda: swiglu(gate_up), 3 * INNER
    else:
        width = (NUM_Q + 2 * NUM_KV) * HEAD
        qkv, rope = torch.randn(rows, width, **factory), torch.randn(rows, 2 * HEAD, **factory)
        keys, values = torch.zeros(2, 1, NUM_KV, rows, HEAD, **factory).unbind(0)
        view = StoreView(keys, values, torch.zeros(1, dtype=torch.int32, device="cuda"))
        slots = torch.arange(rows, device="cuda")
        cosines, sines = rope.chunk(2, dim=-1)
        work = lambda: rotate_and_store(qkv, cosines, sines, view, slots)  # noqa: E731
        numbers = 2 * width + 2 * HEAD
    share_of_bandwidth(operation, work, rows * numbers * 2)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_step_of_8b_weights_comes_near_its_floor(batch):
    free, _ = torch.cuda.mem_get_info()
    if free < 22e9:
        pytest.skip("needs 22 GB of free GPU memory")
    config, context = get_config("llama-3.1-8b"), 512
    fused = FusedDecoder(load_decoder("llama-3.1-8b", "bfloat16", "cuda", weights="random"))
    replay, _ = graphed_step(fused, batch, context)
    rate = sorted(read_bandwidth(2**32, "cuda"))[2]
    floor_s = decode_cost(config, "bfloat16", batch, context).bytes / rate
    seconds = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            replay()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e4)
    step_s = sorted(seconds)[len(seconds) // 2]
    print(f"batch {batch}: {step_s * 1e3:.2f} ms, floor {floor_s * 1e3:.2f} ms at "
          f"{rate / 1e12:.2f} TB/s: {floor_s / step_s:.0%} (aim {STEP_AIM:.0%})")  # fmt: skip
    assert STEP_LEAST < floor_s / step_s < 1.1
