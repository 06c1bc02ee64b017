"""What is compiled again and what is copied: counted, without a compiler behind."""

import os

import pytest
import torch
from tiny_models import tiny

from inferlab import compiletraps, recompiles
from inferlab.errors import UserError
from inferlab.models.load import load_decoder

SHAPE = tiny("tiny-traps")


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(SHAPE, "float32", "cpu", "random", pack=False)


@pytest.mark.parametrize(
    ("trigger", "without_symbols", "with_symbols"),
    [
        ("another token", 1, 1),
        ("another batch size", 4, 2),
        ("a growing cache", 4, 2),
        ("a Python number", 4, 2),
        ("a dtype", 2, 2),
    ],
)
def test_what_makes_dynamo_start_again(decoder, trigger, without_symbols, with_symbols):
    function, calls = recompiles.step_calls(decoder, trigger, 4)
    assert recompiles.count_compilations(function, calls, dynamic=False) == without_symbols
    assert recompiles.count_compilations(function, calls) == with_symbols


def test_calls_of_a_trigger_run_eagerly_too(decoder):
    for trigger in recompiles.TRIGGERS:
        function, calls = recompiles.step_calls(decoder, trigger, 2)
        with torch.no_grad():
            assert all(function(*call).isfinite().all() for call in calls)


def test_what_cannot_be_traced_is_one_line():
    def breaks(x):
        print("a side effect")
        return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="cannot be compiled: "):
        recompiles.count_compilations(breaks, [(torch.ones(2),)])
    with pytest.raises(UserError, match="unknown trigger 'rain'"):
        recompiles.step_calls(None, "rain", 2)


def test_one_tensor_for_all_layers_is_written_whole_at_each_write(decoder):
    layers, one = SHAPE.num_layers, SHAPE.num_kv_heads * 32 * SHAPE.head_dim * 4
    apart = compiletraps.written_bytes(decoder, 32, stacked=False)
    assert apart == 2 * layers * one
    together = compiletraps.written_bytes(decoder, 32, stacked=True)
    assert together == apart + 2 * layers * layers * one


def test_every_setting_computes_the_same(decoder):
    eager = compiletraps.TrapStep(decoder, "eager", 16)
    stacked = compiletraps.TrapStep(decoder, "stacked cache", 16)
    stacked._call = compiletraps.decode_step  # not compiled: seconds
    growing = compiletraps.TrapStep(decoder, "growing shapes", 16)
    growing._call = compiletraps.decode_step
    for position in range(3):
        wanted = eager(position)
        assert torch.allclose(stacked(position), wanted, atol=1e-5)
        assert torch.allclose(growing(position), wanted, atol=1e-5)
    values = compiletraps.trap_case(eager, 3, 4).run()
    assert 0 < values["fastest_step_s"] <= values["step_s"] and values["compile_s"] == 0


def test_freezing_is_put_back(decoder):
    before = torch._inductor.config.freezing
    compiletraps.TrapStep(decoder, "eager", 8)(0)
    assert torch._inductor.config.freezing == before


def test_an_unknown_setting_is_refused(decoder):
    with pytest.raises(UserError, match="unknown setting 'fast'; known: eager"):
        compiletraps.TrapStep(decoder, "fast", 8)


def test_a_cold_compiler_has_an_empty_folder(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    folder = compiletraps.cold_compiler()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == folder and not os.listdir(folder)


def test_settings_do_not_answer_for_each_other(decoder):
    steps = [compiletraps.TrapStep(decoder, "eager", 16) for _ in range(2)]
    first, second = (step._compiled() for step in steps)
    assert first.__code__ is not second.__code__
    assert torch.equal(steps[0](3), steps[1](3))
