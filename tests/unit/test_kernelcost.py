"""Bytes and launches of operations: as the operators that really run, and fused to the least."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab import kernelcost, kernelops
from inferlab.errors import UserError
from inferlab.kernelwatch import watched
from inferlab.models.config import get_config

MODELS = ("smollm2-135m", "llama-3.2-1b")
SEPARATE = tuple(kernelops.CPU_VARIANTS)


def moved(cost):
    return [(op.name, op.read_bytes, op.write_bytes) for op in cost.operators]


@pytest.mark.parametrize("operation", SEPARATE)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("model", "size", "batch_size"), [(MODELS[0], 7, 1), (MODELS[1], 5, 3)])
def test_separate_operators_are_those_that_run(operation, dtype, model, size, batch_size):
    config = get_config(model)
    inputs = kernelops.make_inputs(
        operation, config, getattr(torch, dtype), "cpu", size, batch_size
    )
    seen = watched(kernelops.function_of(operation, "eager"), **inputs)
    assert moved(seen) == moved(
        kernelcost.cost(operation, "eager", config, dtype, size, batch_size)
    )


@pytest.mark.parametrize("operation", ["prefill_attention", "decode_attention"])
def test_pytorch_s_attention_starts_what_is_counted(operation):
    config = get_config(MODELS[0])
    inputs = kernelops.make_inputs(operation, config, torch.bfloat16, "cpu", 11)
    seen = watched(kernelops.function_of(operation, "library"), **inputs)
    counted = kernelcost.cost(operation, "library", config, "bfloat16", 11)
    assert seen.launches == counted.launches
    assert moved(seen)[:-1] == moved(counted)[:-1]


def test_a_norm_by_hand():
    """SmolLM2-135M, 3 rows of 576 numbers: nine operators, seven float32 passes in between."""
    config, n = get_config("smollm2-135m"), 3 * 576
    separate = kernelcost.cost("add_rms_norm", "eager", config, "bfloat16", 3)
    assert separate.launches == 9
    wide = 2 * n + 4 * n + 4 * n + 4 * n + 4 * n + 4 * n + 4 * n + 4 * n + 2 * n
    assert separate.bytes == 6 * n + wide + 4 * n + 2 * 576 + 4 * 3 * 6
    fused = kernelcost.cost("add_rms_norm", "triton", config, "bfloat16", 3)
    assert (fused.launches, fused.bytes) == (1, 8 * n + 2 * 576)


def test_scores_grow_with_the_square_and_fused_attention_does_not_write_them():
    config = get_config("llama-3.1-8b")
    naive, fused = (
        [kernelcost.cost("prefill_attention", v, config, "bfloat16", t).bytes for t in (512, 4096)]
        for v in ("eager", "triton")
    )
    assert naive[1] / naive[0] > 50 and fused[1] / fused[0] == 8
    scores = 32 * 4096**2 * 2
    assert naive[1] > 8 * scores and fused[1] == 2 * 4096 * (4096 + 1024) * 2


def test_fusing_attention_of_one_token_hardly_saves_bytes():
    config = get_config("llama-3.1-8b")
    separate, fused = (
        kernelcost.cost("decode_attention", v, config, "bfloat16", 4096, 2).bytes
        for v in ("eager", "triton")
    )
    assert 1.0 < separate / fused < 1.15
    assert fused == 2 * 2 * 4096 * 1024 * 2 + 2 * 2 * 4096 * 2


@given(
    st.sampled_from([o for o in kernelcost.OPERATIONS if o != "linear"]),
    st.sampled_from(["bfloat16", "float32"]),
    st.integers(1, 3000),
)
@settings(max_examples=60, deadline=None)
def test_a_fused_kernel_moves_fewer_bytes_in_one_launch(operation, dtype, size):
    config = get_config("smollm2-135m")
    separate = kernelcost.cost(operation, "eager", config, dtype, size)
    fused = kernelcost.cost(operation, "triton", config, dtype, size)
    assert fused.launches == 1 < separate.launches
    assert 0 < fused.bytes < separate.bytes
    assert fused.bytes == kernelcost.least_bytes(operation, config, dtype, size)
    assert fused.flops <= separate.flops


def test_a_product_reads_its_weights_in_any_variant():
    config = get_config("smollm2-135m")
    costs = [kernelcost.cost("linear", v, config, "bfloat16", 4) for v in ("library", "triton")]
    assert costs[0].bytes == costs[1].bytes == 2 * (2 * 1536 * (576 + 4) + 4 * 576)


def test_how_an_operator_is_started():
    config = get_config("smollm2-135m")
    starts = [
        op.start
        for op in kernelcost.cost("prefill_attention", "compile", config, "bfloat16", 9).operators
    ]
    assert starts == ["product", "compile", "product"]
    assert kernelcost.cost("swiglu", "triton", config, "bfloat16", 9).operators[0].start == "triton"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("softmax", "eager", 4), "no operation 'softmax'"),
        (("swiglu", "cuda", 4), "no variant 'cuda'"),
        (("swiglu", "eager", 0), "at least 1"),
    ],
)
def test_wrong_questions_hear_what_to_ask(arguments, says):
    operation, variant, size = arguments
    with pytest.raises(UserError, match=says):
        kernelcost.cost(operation, variant, get_config("smollm2-135m"), "bfloat16", size)
