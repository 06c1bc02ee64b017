"""Autocast converts each operand of a product; weights are converted again unless all allows."""

import pytest
import torch
from tiny_models import TINY

from inferlab.backends.autocast import AutocastBackend, AutocastDecoder, CastCounter
from inferlab.backends.torch import TorchBackend
from inferlab.errors import UserError
from inferlab.models.cost import head_params, layer_matmul_params
from inferlab.models.load import load_decoder
from inferlab.workload import uniform_batch

CONFIG = TINY["llama-untied"]
DOWN = ("float32", "bfloat16")
MATRIX_BYTES = 4 * (CONFIG.num_layers * layer_matmul_params(CONFIG) + head_params(CONFIG))
NUM_PRODUCTS = 4 * CONFIG.num_layers + 1


@pytest.fixture(scope="module")
def exact():
    return load_decoder(CONFIG, "float32", "cpu", "random")


def counted(decoder, steps=3):
    """Counters of decode steps behind a prompt of four tokens, all in one autocast block."""
    cache = decoder.new_cache("static", 1, 16)
    ids = torch.arange(4)[None]
    found = []
    with torch.inference_mode(), decoder.block():
        decoder(ids, cache, torch.arange(4)[None])
        for _ in range(steps):
            with CastCounter() as counter:
                decoder(ids[:, :1], cache, torch.tensor([[cache.length]]))
            found.append(counter)
    return found


def test_a_frozen_model_converts_every_weight_at_every_step(exact):
    for counter in counted(AutocastDecoder(exact)):
        assert counter.casts[DOWN] >= 2 * NUM_PRODUCTS  # weight and input of each product
        assert counter.cast_bytes[DOWN] > MATRIX_BYTES
        assert counter.ran["linear", "bfloat16"] == NUM_PRODUCTS
        assert not counter.ran["linear", "float32"]


def test_weights_that_require_a_gradient_are_converted_once(exact):
    for counter in counted(AutocastDecoder(exact, keeps_casts=True)):
        assert counter.casts[DOWN] >= NUM_PRODUCTS
        assert 0 < counter.cast_bytes[DOWN] < MATRIX_BYTES / 2


def test_norms_and_the_residual_stream_stay_in_float32(exact):
    (counter,) = counted(AutocastDecoder(exact), steps=1)
    assert counter.ran["rms_norm", "float32"] == 2 * CONFIG.num_layers + 1
    assert counter.ran["add", "float32"] == 2 * CONFIG.num_layers
    assert not counter.ran["add", "bfloat16"]


def test_without_autocast_nothing_is_converted(exact):
    cache = exact.new_cache("static", 1, 4)
    with torch.inference_mode(), CastCounter() as counter:
        exact(torch.arange(4)[None], cache, torch.arange(4)[None])
    assert not counter.casts


@pytest.mark.parametrize("keeps_casts", [False, True])
def test_both_ways_write_the_same_text(exact, keeps_casts):
    workload = uniform_batch(CONFIG.vocab_size, 2, 5, 6, seed=3)
    plain = TorchBackend(exact).run(workload)
    mixed = AutocastBackend(exact, keeps_casts=keeps_casts).run(workload)
    again = AutocastBackend(exact, keeps_casts=False).run(workload)
    assert mixed.token_ids == again.token_ids
    assert len(mixed.token_ids[0]) == len(plain.token_ids[0]) == 6


def test_only_float32_weights_are_converted():
    half = load_decoder(CONFIG, "bfloat16", "cpu", "random", pack=False)
    with pytest.raises(UserError, match="float32"):
        AutocastDecoder(half)
