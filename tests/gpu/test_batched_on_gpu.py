"""The server of batches on a GPU: tokens as alone, and a store that holds no padding."""

import pytest
import torch

from inferlab.backends.batched import BatchedBackend
from inferlab.batching import bench, tables
from inferlab.decoding.generate import generate
from inferlab.fitting import Fitted
from inferlab.models.config import get_config
from inferlab.models.load import load_decoder
from inferlab.roofline import Ceilings
from inferlab.serving.batcher import NONE, dynamic, static
from inferlab.serving.waits import PREFILLS
from inferlab.workload import unequal_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LIMITS = Ceilings(2e12, 4e14)


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(get_config("smollm2-135m"), "float32", "cuda", "random")


@pytest.mark.parametrize("prefill", PREFILLS)
@pytest.mark.parametrize("policy", [NONE, static(3), dynamic(8)])
def test_no_policy_changes_a_token(decoder, policy, prefill):
    odd = unequal_batch(decoder.config.vocab_size, (37, 1, 130, 3, 64), (9, 3, 1, 6, 17), seed=40)
    alone = [generate(decoder, [s.prompt_token_ids], s.output_len)[0] for s in odd.requests]
    assert BatchedBackend(decoder, policy, prefill).run(odd).token_ids == alone


def test_cases_of_the_lab_run_in_bfloat16():
    decoder = load_decoder(get_config("smollm2-135m"), "bfloat16", "cuda", "random")
    fitted = Fitted(LIMITS, LIMITS)
    found = bench.service_case(decoder, 16, 128, 8, fitted).run()
    assert 0 < found["tpot_s"] < found["service_s"]
    for how in ("padded", "packed", "alone"):
        seconds = bench.prefill_case(decoder, (5, 300, 17), "chat", how, fitted).run()["prefill_s"]
        assert 0 < seconds < 5
    times = tables.StepTimes({128: 0.01, 2048: 0.02}, {1: 0.01, 16: 0.012})
    traffic = bench.Traffic(128, (8,), 16, 0.8)
    case = bench.load_case(decoder, dynamic(16), traffic, times, {}, "load0.8/dynamic")
    assert case.run()["e2e_s"] > 0
    torch.cuda.synchronize()
