"""Decode steps that are replayed: the same tokens, each length captured once."""

import pytest
import torch
from tiny_models import TINY

from inferlab.decoding.generate import generate
from inferlab.decoding.graphs import GraphedDecoder, captured
from inferlab.models.load import load_decoder

PROMPTS = [[1, 5, 9], [7, 2, 4]]


class Captures:
    """Stands in for the capture: counts, and does the work again at each replay."""

    def __init__(self):
        self.count = 0

    def __call__(self, work, device, pool):
        self.count += 1
        return work


@pytest.fixture(params=["llama", "qwen3"])
def decoder(request):
    return load_decoder(TINY[request.param], "float32", weights="random")


def test_on_a_cpu_the_work_stays_as_it_is(decoder):
    def work():
        return 1

    assert captured(work, "cpu") is work
    plain = generate(decoder, PROMPTS, 6)
    assert generate(GraphedDecoder(decoder), PROMPTS, 6) == plain


def test_replayed_steps_give_the_same_tokens_and_each_length_is_captured_once(decoder):
    captures = Captures()
    graphed = GraphedDecoder(decoder, captures)
    cache = graphed.new_cache("static", 2, 8)
    for _ in range(3):
        assert generate(graphed, PROMPTS, 6, cache) == generate(decoder, PROMPTS, 6)
    assert captures.count == 5  # the first token is the prefill's


def test_another_cache_is_captured_anew(decoder):
    captures = Captures()
    graphed = GraphedDecoder(decoder, captures)
    for _ in range(2):
        assert generate(graphed, PROMPTS, 4) == generate(decoder, PROMPTS, 4)
    assert captures.count == 6
    graphed.release()
    assert generate(graphed, PROMPTS[:1], 4) == generate(decoder, PROMPTS[:1], 4)


@pytest.mark.parametrize("cache", ["dynamic", "none"])
def test_other_caches_and_padded_batches_are_left_to_the_decoder(decoder, cache):
    captures = Captures()
    graphed = GraphedDecoder(decoder, captures)
    assert generate(graphed, PROMPTS, 5, cache) == generate(decoder, PROMPTS, 5, cache)
    uneven = [[1, 2, 3, 4], [5]]
    assert generate(graphed, uneven, 5) == generate(decoder, uneven, 5)
    assert captures.count == 0


def test_logits_of_a_step_are_those_of_the_decoder(decoder):
    graphed = GraphedDecoder(decoder, Captures())
    ids = torch.tensor([[3], [4]])
    with torch.inference_mode():
        caches = [decoder.new_cache("static", 2, 4) for _ in range(2)]
        for step in range(3):
            positions = torch.tensor([[step]])
            expected = decoder(ids, caches[0], positions)
            assert torch.equal(graphed(ids, caches[1], positions), expected)
            assert caches[1].length == step + 1
