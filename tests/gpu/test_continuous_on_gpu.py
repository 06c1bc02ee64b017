"""Cases of lab 41 on a CUDA device: eager and fused steps, both stores, whole and chunked."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from tiny_models import tiny  # noqa: E402

from inferlab.continuous import bench  # noqa: E402
from inferlab.continuous.cost import StepTimes  # noqa: E402
from inferlab.continuous.setting import Setting  # noqa: E402
from inferlab.decoding.generate import generate  # noqa: E402
from inferlab.lengths import Lengths  # noqa: E402
from inferlab.models.load import load_decoder  # noqa: E402
from inferlab.roofline import Ceilings  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CONFIG = tiny("tiny-d64", hidden_size=96, head_dim=64, num_layers=4, vocab_size=500)
REQUESTS = [Lengths(p, n) for p, n in ((9, 5), (3, 30), (14, 3), (6, 8), (8, 2), (7, 26))]
PEAK = Ceilings(1e12, 1e14)


@pytest.mark.parametrize("store", ["maximum", "paged"])
@pytest.mark.parametrize(("policy", "chunk"), [("static", None), ("continuous", 4)])
def test_tokens_are_those_of_each_prompt_alone(store, policy, chunk):
    decoder = load_decoder(CONFIG, "float32", "cuda", "random")
    setting = Setting(policy, store, 3, 192, 48, 8, chunk)
    served = bench.serve(decoder, REQUESTS, setting)
    prompts = bench.prompts_for(CONFIG.vocab_size, REQUESTS, 0)
    for prompt, request, written in zip(prompts, REQUESTS, served.token_ids, strict=True):
        assert written == generate(decoder, [prompt], request.output_len)[0]


@pytest.mark.parametrize("step", ["eager", "kernels"])
def test_cases_run_with_either_kind_of_step(step):
    decoder = load_decoder(CONFIG, "bfloat16", "cuda", "random")
    times = StepTimes(CONFIG, "bfloat16", PEAK, PEAK)
    setting = Setting("continuous", "paged", 3, 192, 48, 8, 4)
    case = bench.served_case(decoder, REQUESTS, setting, times, {}, step=step)
    assert case.run()["num_steps"] == case.predicted["num_steps"]
