"""The attention kernels on a CUDA device: exact within rounding, repeatable, near the bandwidth.

Correctness is judged against float64; speed by medians over CUDA graph replays, against a plain
sum over as many bytes and against PyTorch. Shapes of speed are those of Llama-3.1-8B.
"""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from attention_examples import check_attention, dense, numbers, paged  # noqa: E402

from inferlab import kernels  # noqa: E402
from inferlab.kernels.attention_reference import naive_attention, paged_attention  # noqa: E402
from inferlab.kvcache.view import StoreView  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
NUM_KV, REPEATS, HEAD = 8, 4, 128  # Llama-3.1-8B
# Every case is compiled: not all combinations.
FLASH_CASES = [
    (1, 1, 1, 1, 64, BRAIN), (1, 333, 3, 3, 64, HALF), (7, 7, 8, 4, 128, BRAIN),
    (64, 65, 2, 2, 128, HALF), (127, 129, 1, 5, 64, FULL), (128, 128, 4, 1, 128, BRAIN),
    (129, 1001, 2, 3, 64, BRAIN), (1000, 1000, 5, 2, 64, HALF), (777, 1333, 3, 6, 128, BRAIN),
    (33, 70, 6, 7, 24, BRAIN), (300, 300, 7, 8, 128, FULL), (50, 200, 1, 1, 256, BRAIN),
]  # fmt: skip
DECODE_CASES = [
    (num_kv, repeats, head_dim, BRAIN, size)
    for num_kv, repeats, head_dim in (
        (1, 1, 64), (3, 3, 64), (8, 4, 128), (2, 8, 128), (5, 2, 64), (4, 5, 128), (6, 6, 64),
        (7, 7, 64), (1, 32, 128), (1, 70, 64), (2, 3, 24), (1, 4, 256),
    )
    for size in (None, 16)
] + [
    (num_kv, repeats, head_dim, dtype, size)
    for num_kv, repeats, head_dim in ((3, 3, 64), (8, 4, 128))
    for dtype in (BRAIN, HALF, FULL)
    for size in (8, 32, 128)
]  # fmt: skip
LEAST_SHARE = 0.85  # of the bandwidth of a plain sum


@pytest.fixture(autouse=True)
def can_run():
    if why := kernels.why_unavailable("cuda"):
        pytest.skip(why)


def on_gpu(view):
    tables = None if view.block_tables is None else view.block_tables.cuda()
    return StoreView(view.keys.cuda(), view.values.cuda(), view.lengths.cuda(), tables)


def decode(queries, view, splits=None):
    from inferlab.kernels.split_kv import decode_attention

    return decode_attention(queries, view, splits)


def flash(queries, keys, values, causal=True):
    from inferlab.kernels.flash_attention import flash_attention

    return flash_attention(queries, keys, values, causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("new", "total", "num_kv", "repeats", "head_dim", "dtype"), FLASH_CASES)
def test_flash_attention_on_awkward_shapes(new, total, num_kv, repeats, head_dim, causal, dtype):
    queries = numbers(2, new, num_kv * repeats, head_dim).to(dtype).cuda()
    keys = numbers(2, num_kv, total, head_dim, seed=1).to(dtype).cuda()
    values = numbers(2, num_kv, total, head_dim, seed=2).to(dtype).cuda()
    found = flash(queries, keys, values, causal)
    check_attention(found, naive_attention(queries, keys, values, causal), values)
    assert torch.equal(flash(queries, keys, values, causal), found), "another result each time"


def test_flash_attention_reads_nothing_behind_the_keys():
    store = numbers(2, 2, 256, 64).bfloat16().cuda()
    store[:, :, 133:] = math.nan
    keys, queries = store[:, :, :133], numbers(2, 133, 6, 64).bfloat16().cuda()
    check_attention(flash(queries, keys, keys), naive_attention(queries, keys, keys), keys)


@pytest.mark.parametrize(("num_kv", "repeats", "head_dim", "dtype", "size"), DECODE_CASES)
def test_decode_attention_of_rows_of_different_length(num_kv, repeats, head_dim, size, dtype):
    lengths = [1, 299, 40, 128, 0, 177]
    queries = numbers(6, num_kv * repeats, head_dim).to(dtype).cuda()
    keys = numbers(6, num_kv, 300, head_dim, seed=1).to(dtype)
    values = numbers(6, num_kv, 300, head_dim, seed=2).to(dtype)
    make = (lambda *given: paged(*given, size)) if size else dense
    view = on_gpu(make(keys, values, lengths))
    keys, values = keys.cuda(), values.cuda()
    for splits in (None, 1, 5):
        found = decode(queries, view, splits)
        for row, length in enumerate(lengths):
            if length == 0:
                assert not found[row].any()
                continue
            exact = naive_attention(
                queries[row : row + 1, None], keys[row : row + 1, :, :length],
                values[row : row + 1, :, :length],
            )  # fmt: skip
            check_attention(found[row], exact[0, 0], values)
        assert torch.equal(decode(queries, view, splits), found), "another result each time"


def random_view(batch, capacity, size=None, lengths=None, seed=0):
    """A store of Llama-3.1-8B's heads, dense or in shuffled blocks; full without `lengths`."""
    generator = torch.Generator("cuda").manual_seed(seed)
    places = size or capacity
    width = capacity // places
    shape = (batch * width, NUM_KV, places, HEAD)
    keys, values = (
        torch.randn(shape, generator=generator, dtype=BRAIN, device="cuda") for _ in "kv"
    )
    lengths = torch.tensor(lengths or [capacity] * batch, dtype=torch.int32, device="cuda")
    tables = None
    if size:
        order = torch.randperm(batch * width, generator=generator, device="cuda")
        tables = order.view(batch, width).int()
    return StoreView(keys, values, lengths, tables)


def random_queries(batch, *new, seed=5):
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (batch, *new, NUM_KV * REPEATS, HEAD)
    return torch.randn(shape, generator=generator, dtype=BRAIN, device="cuda")


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("batch", [1, 8])
def test_decode_attention_of_a_long_store(batch, size):
    """Every split at work, many shares to add up, against the same in float64."""
    from inferlab.kernels import tiles

    capacity = 16384
    lengths = [capacity - 1111 * row for row in range(batch)]
    view, queries = random_view(batch, capacity, size, lengths), random_queries(batch)
    exact = StoreView(view.keys.double(), view.values.double(), view.lengths, view.block_tables)
    found = decode(queries, view)
    check_attention(found, paged_attention(queries.double(), exact), view.values)
    for _ in range(20):
        assert torch.equal(decode(queries, view), found), "another result each time"
    assert not tiles.counters(queries).any()


@pytest.mark.parametrize("size", [None, 16])
def test_a_captured_graph_follows_the_lengths(size):
    view, queries = random_view(4, 4096, size), random_queries(4)
    decode(queries, view)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = decode(queries, view)
    for lengths in ([1, 2, 3, 4], [4096, 1, 2048, 777], [0, 4095, 64, 65]):
        view.lengths.copy_(torch.tensor(lengths))
        queries.copy_(random_queries(4, seed=lengths[1]))
        graph.replay()
        again = found.clone()
        assert torch.equal(decode(queries, view), again)
        exact = paged_attention(
            queries.double(),
            StoreView(view.keys.double(), view.values.double(), view.lengths, view.block_tables),
        )
        check_attention(again, exact, view.values)


def test_flash_attention_keeps_no_scores():
    """T x S scores of 32 heads in bfloat16 would take 4 GB."""
    queries, view = random_queries(1, 8192), random_view(1, 8192)
    flash(queries, view.keys, view.values)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = flash(queries, view.keys, view.values)
    assert torch.cuda.max_memory_allocated() - before < 1.1 * found.numel() * found.element_size()


def median_s(work):
    """Seconds of one call of `work`, the launch aside: CUDA graph replays."""
    import triton

    return triton.testing.do_bench_cudagraph(work, rep=100, return_mode="median") / 1e3


def bytes_read(view):
    """Keys and values of all positions stored."""
    return int(view.lengths.sum()) * 2 * NUM_KV * HEAD * view.keys.element_size()


def share_of_bandwidth(view, queries):
    """What decode attention reads a second, over what a plain sum of as many bytes reads."""
    count = bytes_read(view)
    sum_s = median_s(torch.ones(count // 4, device="cuda").sum)
    ours_s = median_s(lambda: decode(queries, view))
    print(f"{count / ours_s / 1e12:.2f} of {count / sum_s / 1e12:.2f} TB/s: {sum_s / ours_s:.0%}")
    return sum_s / ours_s


# 268 MB to 1 GB of keys and values, several times any L2 cache.
@pytest.mark.parametrize(
    ("batch", "capacity"), [(1, 65536), (4, 16384), (8, 8192), (33, 4096), (64, 1024), (256, 1024)]
)
def test_decode_attention_reads_at_the_bandwidth(batch, capacity):
    assert share_of_bandwidth(random_view(batch, capacity), random_queries(batch)) >= LEAST_SHARE


def test_rows_of_different_length_read_at_the_bandwidth():
    lengths = [1024 * (1 + row % 16) for row in range(32)]
    view = random_view(32, 16384, 16, lengths)
    assert share_of_bandwidth(view, random_queries(32)) >= LEAST_SHARE


@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize(("batch", "capacity"), [(1, 65536), (8, 8192), (64, 1024)])
def test_blocks_cost_little(batch, capacity, size):
    queries = random_queries(batch)
    dense_view, paged_view = random_view(batch, capacity), random_view(batch, capacity, size)
    dense_s = median_s(lambda: decode(queries, dense_view))
    paged_s = median_s(lambda: decode(queries, paged_view))
    print(f"blocks of {size}: {paged_s / dense_s:.2f} times the dense store's time")
    assert paged_s / dense_s <= 1.10


def test_one_long_sequence_needs_splits():
    view, queries = random_view(1, 65536), random_queries(1)
    whole_s = median_s(lambda: decode(queries, view, 1))
    ratio = whole_s / median_s(lambda: decode(queries, view))
    print(f"splits make one sequence of 65,536 positions {ratio:.1f} times faster")
    assert ratio > 4


@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention_keeps_up_with_pytorch(causal):
    queries, view = random_queries(1, 4096), random_view(1, 4096)
    turned = queries.transpose(1, 2)
    repeated = [
        each.repeat_interleave(REPEATS, dim=1) for each in (view.keys, view.values)
    ]  # before the clock starts: not every version's flash takes groups
    ours_s = median_s(lambda: flash(queries, view.keys, view.values, causal))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        theirs_s = median_s(
            lambda: F.scaled_dot_product_attention(turned, *repeated, is_causal=causal)
        )
    flops = 4 * 4096 * 4096 * NUM_KV * REPEATS * HEAD / (2 if causal else 1)
    print(f"{flops / ours_s / 1e12:.0f} of {flops / theirs_s / 1e12:.0f} TFLOP/s")
    assert theirs_s / ours_s >= 0.6


def test_flash_attention_beats_scores_in_memory():
    queries, view = random_queries(1, 4096), random_view(1, 4096)
    naive_s = median_s(lambda: naive_attention(queries, view.keys, view.values, dtype=None))
    assert naive_s / median_s(lambda: flash(queries, view.keys, view.values)) > 2
