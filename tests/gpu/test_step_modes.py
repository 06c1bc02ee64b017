"""Every mode of a decode step on a CUDA device: the same tokens, graphs that pay.

Ratios are of medians with wide bands: they catch a mode that lost its way, not a slow afternoon.
"""

import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from tiny_models import tiny  # noqa: E402

from inferlab import kernels  # noqa: E402
from inferlab.backends import load_backend  # noqa: E402
from inferlab.decoding.generate import generate  # noqa: E402
from inferlab.decoding.steps import STEPS, make_stepper  # noqa: E402
from inferlab.filledcache import FilledCaches  # noqa: E402
from inferlab.models.load import load_decoder  # noqa: E402
from inferlab.quantbench import decode_trace, step_metrics  # noqa: E402
from inferlab.workload import unequal_batch  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CONFIG = tiny("tiny-steps", num_layers=2, hidden_size=64, head_dim=16, max_context_len=512)
UNEVEN = [[1, 2, 3, 4], [5], [6, 7]]
MODES = STEPS[1:]


@pytest.fixture(autouse=True)
def can_run():
    if why := kernels.why_unavailable("cuda"):
        pytest.skip(why)


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(CONFIG, "float32", "cuda", "random")


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_the_eager_static_cache(decoder, mode):
    stepper = make_stepper(decoder, mode)
    for prompts, output_len in ((UNEVEN, 150), ([[7] * 126] * 3, 9), ([[8] * 251] * 3, 9)):
        assert generate(stepper, prompts, output_len) == generate(decoder, prompts, output_len)
    assert stepper.mode == mode and stepper.recompiles == 0


@pytest.mark.parametrize("mode", MODES)
def test_the_real_model_in_float32(mode):
    workload = unequal_batch(49152, [5, 33, 1, 64], 24, seed=5)
    expected = load_backend("torch", "smollm2-135m", "float32", "cuda").run(workload)
    backend = load_backend("torch", "smollm2-135m", "float32", "cuda", step=mode)
    for _ in range(2):  # the second time from graphs that are there
        run = backend.run(workload)
        assert run.token_ids == expected.token_ids and run.trace.meta["step"] == mode


@pytest.mark.parametrize("mode", ["graph", "compile", "kernels-graph"])
def test_a_replayed_step_is_faster_than_an_eager_one_at_batch_1(mode):
    decoder = load_decoder("smollm2-135m", "bfloat16", "cuda", "real")
    stepper, caches = make_stepper(decoder, mode), FilledCaches()
    cache = caches.lend(stepper, 1, 500, 9)
    eager = _eager_step_s(decoder)
    for _ in range(3):
        metrics = step_metrics(decode_trace(stepper, 1, 500, 8, caches))
    assert metrics["tpot_s"] < 0.7 * eager
    assert caches.lend(stepper, 1, 500, 9) is cache


def _eager_step_s(decoder):
    """Median seconds of an eager step behind 500 positions."""
    cache = decoder.new_cache("static", 1, 512)
    token, seconds = torch.zeros(1, 1, dtype=torch.int64, device="cuda"), []
    with torch.inference_mode():
        for _ in range(20):
            cache.length = 500
            torch.cuda.synchronize()
            start = time.perf_counter()
            decoder(token, cache, torch.full_like(token, 500))
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
