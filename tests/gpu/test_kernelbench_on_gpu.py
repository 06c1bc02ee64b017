"""Fused kernels on a CUDA device: right in every variant, and near the bandwidth beyond the L2.

The share is that of `kernelbench`: the device's own clock, the L2 flushed before each call, against
the bandwidth measured just before. Shapes are those of Llama-3.1-8B.
"""

import statistics

import pytest
import torch

from inferlab import kernelbench, kernelcheck, kernelops, kernelprobes, kernels
from inferlab.models.config import get_config
from inferlab.plot_kernels import TARGET_SHARE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LARGE, DTYPE, DEVICE = get_config("llama-3.1-8b"), "bfloat16", "cuda"
# (operation, size, batch size): each moves several times what any L2 holds.
BEYOND_THE_L2 = [
    ("add_rms_norm", 16384, 1), ("rope_store", 16384, 1), ("swiglu", 8192, 1),
    ("decode_attention", 16384, 8), ("linear", 1, 1), ("linear", 16, 1),
]  # fmt: skip


@pytest.fixture(autouse=True)
def can_run():
    if why := kernels.why_unavailable(DEVICE):
        pytest.skip(why)


@pytest.fixture(scope="module")
def bench():
    rates = kernelprobes.measure_rates(DTYPE, DEVICE, LARGE.head_dim, compiles=False)
    return kernelbench.Bench(LARGE, DTYPE, DEVICE, rates, {})


@pytest.mark.parametrize("operation", kernelops.CUDA_VARIANTS)
@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (37, 1), (131, 3)])
def test_every_variant_computes_what_float64_does(bench, operation, size, batch_size):
    for variant in bench.variants(operation):
        inputs = bench.inputs(operation, size, batch_size, seed=1)
        work = bench.work(operation, variant, inputs)
        checked = kernelcheck.check_variant(operation, variant, size, batch_size, inputs, work)
        assert checked.passed, checked


@pytest.mark.parametrize(("operation", "size", "batch_size"), BEYOND_THE_L2)
def test_kernels_read_and_write_near_the_measured_bandwidth(bench, operation, size, batch_size):
    made = kernelbench.made_once(bench, operation, size, batch_size)
    case = kernelbench.operation_case(bench, operation, "triton", size, batch_size, made)
    assert case.predicted["least_bytes"] > 2 * torch.cuda.get_device_properties(0).L2_cache_size
    case.run()
    shares = [case.run()["bandwidth_share_ratio"] for _ in range(5)]
    assert statistics.median(shares) >= TARGET_SHARE, f"{operation}: {shares}"


def test_a_flushed_copy_takes_longer_than_one_from_the_l2():
    x = torch.ones(1 << 20, dtype=torch.float32, device=DEVICE)  # 8 MB, read and written
    y = torch.empty_like(x)
    warm = min(kernelbench.in_a_row_s(lambda: y.copy_(x), DEVICE, 200) for _ in range(3))
    cold = kernelbench.flushed_s(kernelbench.captured(lambda: y.copy_(x), DEVICE), DEVICE)
    assert cold > warm


def test_launches_are_hidden_behind_long_kernels_and_not_behind_short_ones(bench):
    assert bench.rates.overlaps
    assert {"eager", "product", "triton", "graph"} <= set(bench.rates.launch_s)
    assert bench.rates.launch_s["graph"] < bench.rates.launch_s["eager"]
    cost = bench.cost("add_rms_norm", "eager", 16384)
    assert bench.rates.predict_s(cost) == pytest.approx(bench.rates.work_s(cost))
