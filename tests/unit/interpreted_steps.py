"""Steps through the fused kernels in Triton's interpreter; `test_steps.py` runs this file."""

import os

import pytest
from test_graphs import Captures
from tiny_models import QUANTIZABLE, tiny

from inferlab.backends import load_backend
from inferlab.decoding.generate import generate
from inferlab.decoding.steps import make_stepper
from inferlab.errors import UserError
from inferlab.models.load import load_decoder
from inferlab.workload import unequal_batch

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_steps.py instead"
CONFIG = tiny("tiny-kernels", num_layers=1, hidden_size=64, head_dim=16, max_context_len=256)
UNEVEN = [[1, 2, 3, 4], [5], [6, 7]]


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(CONFIG, "float32", weights="random", pack=False)


def test_steps_give_the_tokens_of_the_eager_static_cache(decoder):
    stepper = make_stepper(decoder, "kernels")
    for prompts, output_len in ((UNEVEN, 5), ([[1] * 126] * 2, 3)):
        assert generate(stepper, prompts, output_len) == generate(decoder, prompts, output_len)
    assert stepper.mode == "kernels" and stepper.compile_s == 0


def test_one_graph_does_for_all_buckets_of_a_cache(decoder):
    captures = Captures()
    stepper = make_stepper(decoder, "kernels-graph", captures)
    prompts = [[1] * 126, [2] * 3]
    cache = stepper.new_cache("static", 2, 129)
    for _ in range(2):
        assert generate(stepper, prompts, 4, cache) == generate(decoder, prompts, 4)
    assert captures.count == 1


def test_a_backend_loads_plain_weights_for_them():
    options = {"weights": "random", "step": "kernels"}
    backend = load_backend("torch", CONFIG, "bfloat16", "cpu", **options)
    run = backend.run(unequal_batch(CONFIG.vocab_size, (3, 1), (2, 2), seed=0))
    assert run.trace.meta["step"] == "kernels"


def test_quantized_weights_are_refused():
    with pytest.raises(UserError, match="is quantized"):
        options = {"weights": "random", "quant": "int8", "step": "kernels"}
        load_backend("torch", QUANTIZABLE, "bfloat16", "cpu", **options)
