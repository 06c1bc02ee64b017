import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import QUANTIZABLE, TINY

from inferlab.errors import UserError
from inferlab.models.config import PRESETS, get_config
from inferlab.models.cost import (
    check_format,
    decode_cost,
    dtype_bytes,
    kv_bytes_per_token,
    num_parameters,
    prefill_cost,
    weight_bytes,
    weight_read_bytes,
)
from inferlab.models.decoder import Decoder
from inferlab.models.load import load_decoder
from inferlab.models.projections import projections, replace_weights
from inferlab.models.weights import weight_shapes
from inferlab.quant.formats import FORMATS

# Published parameter counts of the original models.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_published_and_those_of_the_module(name):
    config = get_config(name)
    module = Decoder(config, torch.bfloat16, "meta")
    shapes = weight_shapes(config).values()
    assert num_parameters(config) == PUBLISHED[name]
    assert sum(parameter.numel() for parameter in module.parameters()) == PUBLISHED[name]
    assert sum(torch.Size(shape).numel() for shape in shapes) == PUBLISHED[name]


def test_smollm2_by_hand():
    config = get_config("smollm2-135m")
    assert weight_bytes(config, "bfloat16") == weight_read_bytes(config, "bfloat16") == 269_030_016
    assert kv_bytes_per_token(config, "bfloat16") == 2 * 30 * 3 * 64 * 2 == 23_040
    cost = decode_cost(config, "bfloat16", batch_size=4, context_len=100)
    matmul = 134_515_008 - 61 * 576  # all but the norms
    assert cost.flops == 4 * (2 * matmul + 4 * 100 * 576 * 30)
    assert cost.kv_read_bytes == 4 * 100 * 23_040
    assert cost.kv_write_bytes == 4 * 23_040
    assert cost.bytes == 269_030_016 + 404 * 23_040


def test_an_untied_embedding_table_is_held_but_not_read():
    config = get_config("llama-3.1-8b")
    table = 128_256 * 4096 * 2
    assert weight_bytes(config, "bfloat16") - weight_read_bytes(config, "bfloat16") == table


@given(
    name=st.sampled_from(sorted(PRESETS)),
    batch=st.integers(1, 300),
    length=st.integers(1, 9000),
)
def test_prefill_does_the_work_of_its_decode_steps_but_for_the_heads(name, batch, length):
    config = get_config(name)
    pre = prefill_cost(config, "float16", batch, length)
    if length == 1:
        assert pre.flops == decode_cost(config, "float16", batch, 1).flops
    longer = prefill_cost(config, "float16", batch, length + 1)
    step = decode_cost(config, "float16", batch, length + 1)
    head = 2 * batch * config.vocab_size * config.hidden_size
    assert longer.flops - pre.flops == step.flops - head
    assert longer.kv_write_bytes - pre.kv_write_bytes == step.kv_write_bytes
    assert step.weight_bytes == pre.weight_bytes


@pytest.mark.parametrize("kind", TINY)
def test_flops_are_those_that_torch_counts(kind):
    from torch.utils.flop_counter import FlopCounterMode

    config = TINY[kind]
    decoder = Decoder(config)
    for parameter in decoder.parameters():
        parameter.zero_()
    batch, prompt = 3, 11
    cache = decoder.new_cache("static", batch, prompt + 1)
    ids, positions = torch.zeros(batch, prompt + 1, dtype=torch.int64), torch.arange(prompt + 1)

    def counted(tokens, at):
        with FlopCounterMode(display=False) as counter:
            decoder(tokens, cache, at[None])
        by_op = counter.get_flop_counts()["Global"]
        return sum(v for op, v in by_op.items() if "attention" not in str(op))

    attention = 4 * config.q_size * config.num_layers * batch
    expected = prefill_cost(config, "float32", batch, prompt).flops
    assert (
        counted(ids[:, :prompt], positions[:prompt])
        == expected - attention * prompt * (prompt + 1) / 2
    )
    expected = decode_cost(config, "float32", batch, prompt + 1).flops
    assert counted(ids[:, prompt:], positions[prompt:]) == expected - attention * (prompt + 1)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("keep", [(), ("head",), ("mlp.down", "layers.0")])
def test_quantized_weight_bytes_are_those_of_the_modules(name, keep):
    format = FORMATS[name]
    if format.group_size and QUANTIZABLE.hidden_size % format.group_size:
        pytest.skip("no such groups in the tiny model")
    decoder = load_decoder(QUANTIZABLE, "bfloat16", weights="random", pack=False)
    replace_weights(decoder, format, "rounded", keep)
    expected = 2 * (2 * 2 * 64 + 64)  # the norms
    for _, module in projections(decoder):
        if hasattr(module, "format"):
            expected += format.matrix_bytes(module.out_features, module.in_features)
        else:
            expected += 2 * module.out_features * module.in_features
    assert weight_read_bytes(QUANTIZABLE, "bfloat16", format, keep) == expected


def test_a_quantized_head_lies_beside_the_embedding_that_it_was_tied_to():
    table = 2 * QUANTIZABLE.vocab_size * QUANTIZABLE.hidden_size
    int8 = FORMATS["int8"]
    read = weight_read_bytes(QUANTIZABLE, "bfloat16", int8)
    assert weight_bytes(QUANTIZABLE, "bfloat16", int8) == read + table
    kept = weight_read_bytes(QUANTIZABLE, "bfloat16", int8, ("head",))
    assert weight_bytes(QUANTIZABLE, "bfloat16", int8, ("head",)) == kept


def test_quantizing_changes_the_bytes_of_weights_and_nothing_else():
    config, format = get_config("smollm2-135m"), FORMATS["int4-g32"]
    for cost, size in ((decode_cost, 100), (prefill_cost, 64)):
        plain = cost(config, "bfloat16", 4, size)
        low = cost(config, "bfloat16", 4, size, format)
        assert (low.flops, low.kv_read_bytes) == (plain.flops, plain.kv_read_bytes)
        # 0.625 bytes a weight instead of 2, but for the norms
        assert low.weight_bytes == (134_515_008 - 61 * 576) * 0.625 + 61 * 576 * 2
    with pytest.raises(UserError, match="576 inputs do not divide"):
        decode_cost(config, "bfloat16", 1, 1, FORMATS["int4-g128"])
    with pytest.raises(UserError, match="576 inputs do not divide"):
        check_format(config, "int4-g128")
    assert check_format(config, "int8") is FORMATS["int8"]


def test_bad_arguments_are_refused_in_one_line():
    config = get_config("smollm2-135m")
    with pytest.raises(UserError, match="known: float32, bfloat16, float16"):
        dtype_bytes("int3")
    with pytest.raises(UserError, match="batch_size"):
        decode_cost(config, "float32", 0, 5)
    with pytest.raises(UserError, match="prompt_len"):
        prefill_cost(config, "float32", 1, 2.5)
