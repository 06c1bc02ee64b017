"""Decode steps that are replayed: the same tokens, each bucket captured once."""

import pytest
import torch
from tiny_models import TINY

from inferlab.decoding.generate import generate
from inferlab.decoding.graphs import captured
from inferlab.decoding.steps import make_stepper
from inferlab.errors import UserError
from inferlab.kvcache import CacheShape
from inferlab.kvcache.bucketed import BucketedCache
from inferlab.models.load import load_decoder

PROMPTS = [[1, 5, 9], [7, 2, 4]]


class Captures:
    """Stands in for the capture: counts, runs the work as often, and again at each replay."""

    def __init__(self):
        self.count = 0

    def __call__(self, work, device, pool=None):
        self.count += 1
        for _ in range(3):
            work()
        return work


@pytest.fixture(params=["llama", "qwen3"])
def decoder(request):
    return load_decoder(TINY[request.param], "float32", weights="random")


def narrow_cache(decoder, batch, capacity, bucket):
    config = decoder.config
    shape = CacheShape(config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
    return BucketedCache(shape, decoder.dtype, decoder.device, bucket)


def test_on_a_cpu_the_work_stays_as_it_is_and_a_graphed_step_is_refused(decoder):
    def work():
        return 1

    assert captured(work, "cpu") is work
    with pytest.raises(UserError, match="step graph replays CUDA graphs, which a CPU has not"):
        make_stepper(decoder, "graph")


@pytest.mark.parametrize("prompts", [PROMPTS, [[1, 2, 3, 4, 5], [6], [7, 8, 9]]])
def test_replayed_steps_give_the_same_tokens_and_each_bucket_is_captured_once(decoder, prompts):
    captures = Captures()
    graphed = make_stepper(decoder, "graph", captures)
    start = len(max(prompts, key=len))
    cache = narrow_cache(decoder, len(prompts), start + 9, bucket=4)
    expected = generate(decoder, prompts, 10)
    for _ in range(3):
        assert generate(graphed, prompts, 10, cache) == expected
    # The first token is the prefill's; the other nine end at these positions.
    widths = {-(-end // 4) * 4 for end in range(start + 1, start + 10)}
    assert captures.count == len(widths) > 2


def test_another_cache_is_captured_anew(decoder):
    captures = Captures()
    graphed = make_stepper(decoder, "graph", captures)
    for _ in range(2):
        assert generate(graphed, PROMPTS, 4) == generate(decoder, PROMPTS, 4)
    assert captures.count == 2
    graphed.release()
    assert generate(graphed, PROMPTS[:1], 4) == generate(decoder, PROMPTS[:1], 4)


def test_logits_of_a_step_are_those_of_the_decoder(decoder):
    graphed = make_stepper(decoder, "graph", Captures())
    ids = torch.tensor([[3], [4]])
    with torch.inference_mode():
        caches = [decoder.new_cache(kind, 2, 4) for kind in ("static", "bucketed")]
        for step in range(3):
            positions = torch.tensor([[step]])
            expected = decoder(ids, caches[0], positions)
            found = graphed(ids, caches[1], positions)
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert caches[1].length == step + 1
