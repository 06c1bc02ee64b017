"""The ladder on a GPU: equal tokens on every rung, kernels counted, a graph's launches cheap."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from tiny_models import tiny  # noqa: E402

from inferlab import launchprobes, stepbench, stepsizes  # noqa: E402
from inferlab.roofline import Ceilings  # noqa: E402
from inferlab.workload import unequal_batch  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHAPE = tiny("tiny-gpu-ladder", hidden_size=128, intermediate_size=256, num_q_heads=2,
             num_kv_heads=1, head_dim=64, vocab_size=256, max_context_len=256)  # fmt: skip
LIMITS = Ceilings(1e12, 1e15)


@pytest.fixture(scope="module")
def ladder():
    return stepbench.rungs("cuda", max_autotune=False)


@pytest.fixture(scope="module")
def backends(ladder):
    return stepbench.open_rungs(SHAPE, "float32", "cuda", "random", ladder)


def test_every_rung_writes_the_tokens_of_hf(backends):
    work = unequal_batch(SHAPE.vocab_size, (17, 1, 9), 12, seed=4)
    written = stepbench.tokens_of(backends, work)
    assert {name: tokens == written["hf"] for name, tokens in written.items()} == dict.fromkeys(
        written, True
    )


def test_kernels_are_counted_and_fused_ones_are_fewer(backends):
    counts = {name: stepbench.count_step(b) for name, b in backends.items()}
    assert all(one.kernels > SHAPE.num_layers for one in counts.values())
    assert counts["compile"].kernels < counts["fixed"].kernels
    if "kernels-graph" in counts:
        assert counts["kernels-graph"].kernels < counts["graph"].kernels


def test_launches_in_a_graph_cost_less_than_from_the_host():
    costs = launchprobes.launch_costs("bfloat16", "cuda")
    assert 0 < costs.graph_s < costs.operator_s < 1e-4


def test_a_size_is_timed_eagerly_and_replayed(ladder):
    costs = launchprobes.launch_costs("float32", "cuda")
    for name in ("fixed", "graph"):
        case = stepsizes.size_case(SHAPE, "float32", "cuda", ladder[name], 16, 8, costs, LIMITS)
        assert case.run()["step_s"] > 0 and case.params["kernels"] > 0
