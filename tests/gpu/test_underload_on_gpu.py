"""A whole server on a CUDA device under load: published lengths, its steps, and the roofline."""

import pytest
import torch

from inferlab.backends.http import load
from inferlab.calibration import quick_ceilings
from inferlab.models.config import get_config
from inferlab.models.load import load_decoder
from inferlab.profiles import PROFILES
from inferlab.serving.engine import Engine
from inferlab.underload import bench, cost, crowd
from inferlab.underload.servers import launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MODEL = "llama-3.2-1b"  # a shape: weights are random


@pytest.mark.timeout(400)
def test_a_server_stays_below_its_roofline_and_answers_a_crowd():
    config = get_config(MODEL)
    options = {"device": "cuda", "weights": "random", "max_num_seqs": 32, "cache_tokens": 16_384}
    with launch("inferlab", MODEL, ready_s=300.0, **options) as server:
        runner = load(
            MODEL, url=server.url, served_model=server.model_id, concurrency=32, is_strict=False
        )
        ceilings = quick_ceilings(config, "bfloat16", "cuda")
        cases = crowd.published_cases(runner, config, "bfloat16", ((128, 32),), 32, ceilings)
        (case,) = cases.values()
        found = case.run()
    assert found["failed_count"] == 0
    assert 0 < found["output_tok_per_s"] < case.params["roofline_tok_per_s"]


def test_steps_of_an_engine_give_a_capacity():
    decoder = load_decoder(MODEL, "bfloat16", "cuda", "random")
    engine = Engine(decoder, num_blocks=1024, max_num_seqs=16)
    cases = bench.step_cases(engine, (1, 16), (64, 512), 64, steps=4)
    for case in cases.values():
        case.run()  # warm
    seconds = {name: next(iter(case.run().values())) for name, case in cases.items()}
    model = cost.fit_steps(
        {1: seconds["steps/decode-1"], 16: seconds["steps/decode-16"]},
        {64: seconds["steps/read-64"], 512: seconds["steps/read-512"]},
    )
    asked = cost.Demand(model.read_s(256), 63, 64)
    assert cost.capacity_req_per_s(model, asked, 16) > cost.capacity_req_per_s(model, asked, 1)


def test_lengths_with_published_figures_belong_to_the_largest_profile():
    assert bench.setting(PROFILES["gpu80"]).published == ((1000, 1000), (128, 128))
