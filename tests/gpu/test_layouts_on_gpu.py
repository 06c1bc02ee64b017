"""Layouts on a GPU: tokens as on the CPU, steps replayed from CUDA graphs, room found in memory."""

import pytest
import torch

from inferlab import layoutbench, layoutcost, layoutroom
from inferlab.decoding import generate
from inferlab.models.config import get_config
from inferlab.models.latent import latent_decoder
from inferlab.models.layouts import with_layout
from inferlab.models.load import load_decoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MODEL = "smollm2-135m"
NAMES = ("mha", "gqa", "mqa", "latent-128", "absorbed-128", "decoupled-128")
PROMPTS = [[11, 407, 29, 5300], [9], [77, 21, 3]]


@pytest.fixture(scope="module")
def opened():
    return layoutbench.open_layouts(MODEL, "bfloat16", "cuda", "random", NAMES)


def test_layouts_of_the_same_function_write_the_same_tokens_in_float32():
    base = load_decoder(MODEL, "float32", "cuda", pack=False)
    reference = generate(base, PROMPTS, 8)
    full = 2 * get_config(MODEL).kv_size
    assert generate(with_layout(base, "mha"), PROMPTS, 8) == reference
    for absorb in (False, True):
        assert (
            generate(latent_decoder(base, full, absorb=absorb), PROMPTS, 8, "latent") == reference
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_replayed_step_is_the_step(opened, name):
    from inferlab.decoding.graphs import captured

    found = opened[name]
    cache = layoutbench.filled_cache(found, 3, 200)
    tokens = torch.zeros(3, 1, dtype=torch.int64, device="cuda")
    positions = torch.full((1, 1), 200, device="cuda")

    def work():
        cache.length = 200
        return found.decoder(tokens, cache, positions)

    with torch.inference_mode():
        eager = work().clone()
        replayed = captured(work, "cuda")()
    assert torch.allclose(eager.float(), replayed.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_what_fits_a_budget_is_what_was_predicted(opened, name):
    budget = 256 * 2**20
    expected = layoutcost.largest_batch(opened[name].layout, "bfloat16", 1024, budget)
    assert layoutroom.find_largest_batch(opened[name], 1024, budget) == expected


def test_the_budget_is_most_of_what_is_free(opened):
    free, total = torch.cuda.mem_get_info()
    assert 0.5 * free < layoutroom.kv_budget(opened.values(), 1) < total
