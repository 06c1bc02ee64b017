"""Modes of a decode step: the same tokens, compiled once for all lengths, failures in one line."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from interpreter import check_interpreted
from tiny_models import QUANTIZABLE, TINY, tiny

from inferlab.backends import load_backend
from inferlab.decoding import compiled, steps
from inferlab.decoding.compiled import why_no_compiler
from inferlab.decoding.generate import generate
from inferlab.decoding.steps import STEPS, make_stepper
from inferlab.errors import UserError
from inferlab.kvcache import CacheTooSmall
from inferlab.models.layers import can_pack
from inferlab.models.load import load_decoder
from inferlab.models.placement import BatchTooLarge
from inferlab.workload import uniform_batch

needs_compiler = pytest.mark.skipif(
    bool(why_no_compiler()), reason=f"torch.compile: {why_no_compiler()}"
)
ONE_LAYER = tiny("tiny-one-layer", num_layers=1, max_context_len=1024)
UNEVEN = [[1, 2, 3, 4], [5], [6, 7]]


def plain_decoder(config=ONE_LAYER, dtype="float32"):
    return load_decoder(config, dtype, weights="random", pack=False)


@pytest.fixture(scope="module")
def decoder():
    return plain_decoder()


@pytest.fixture(scope="module")
def stepper(decoder):
    return make_stepper(decoder, "compile")


@needs_compiler
def test_one_compilation_serves_all_lengths_buckets_and_capacities(stepper, decoder):
    for prompt, output_len in (([3] * 120, 20), ([4] * 2, 150), ([5] * 250, 7), ([6] * 3, 126)):
        prompts = [prompt] * len(UNEVEN)
        assert generate(stepper, prompts, output_len) == generate(decoder, prompts, output_len)
    assert generate(stepper, UNEVEN, 150) == generate(decoder, UNEVEN, 150)
    assert stepper.mode == stepper.asked == "compile"
    assert stepper.recompiles == 0 and stepper._compiled().compilations == 1
    assert stepper.compile_s > 0


@needs_compiler
def test_another_caller_does_not_compile_again(stepper, decoder):
    """Neither outside of inference mode nor with tensors of other strides."""
    generate(stepper, UNEVEN, 3)
    before = stepper._compiled().compilations
    tokens = torch.tensor([[1], [2], [3]])
    for strided in (tokens, tokens.expand(3, 2)[:, :1], tokens.repeat(1, 3)[:, ::3]):
        cache = stepper.new_cache("static", 3, 9)
        reference = decoder.new_cache("bucketed", 3, 9)
        for position in range(3):
            positions = torch.tensor([[position]])
            with torch.no_grad():
                found = stepper(strided, cache, positions)
                expected = decoder(tokens, reference, positions)
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert stepper._compiled().compilations == before


@needs_compiler
def test_few_things_are_checked_at_each_step_but_the_number_of_threads_is(monkeypatch):
    seen = []

    def spy(guards, kept=compiled._needed):
        seen.append((guards, kept(guards)))
        return seen[-1][1]

    monkeypatch.setattr(compiled, "_needed", spy)
    made = plain_decoder(tiny("tiny-guards", num_layers=1))
    stepper = make_stepper(made, "compile")
    generate(stepper, UNEVEN, 3)
    ((guards, kept),) = seen
    assert 0 < sum(kept) < 0.1 * len(kept)
    assert {g.guard_type for g, keep in zip(guards, kept, strict=True) if keep} == set(
        compiled.GUARDS
    )
    threads = torch.get_num_threads()
    try:  # generated loops have it built in
        torch.set_num_threads(threads + 1)
        generate(stepper, UNEVEN, 3)
    finally:
        torch.set_num_threads(threads)
    assert stepper.recompiles == 1


@needs_compiler
def test_each_batch_size_is_compiled_once_beyond_the_compilers_own_limit():
    """Several steppers do not use up one another's number of compilations."""
    with torch._dynamo.config.patch(recompile_limit=1):
        compile_two_batch_sizes_of_two_models()


def compile_two_batch_sizes_of_two_models():
    for name in ("llama", "qwen2"):
        made = plain_decoder(tiny(name, num_layers=1, qkv_bias=name == "qwen2"))
        stepper = make_stepper(made, "compile")
        for prompts in (UNEVEN[:1], UNEVEN[:2]):
            assert generate(stepper, prompts, 4) == generate(made, prompts, 4)
        assert stepper.mode == "compile" and stepper._compiled().compilations == 2
        assert stepper.recompiles == 0


@needs_compiler
@pytest.mark.parametrize("quant", ["int8", "int4-g32"])
def test_products_with_low_bit_weights_can_be_compiled(quant):
    options = {"weights": "random", "quant": quant}
    backend = load_backend("torch", QUANTIZABLE, "bfloat16", "cpu", step="compile", **options)
    workload = uniform_batch(QUANTIZABLE.vocab_size, 2, 5, 6, seed=0)
    run = backend.run(workload)
    assert run.trace.meta["step"] == "compile" and run.trace.meta["cache"] == "bucketed"
    eager = load_backend("torch", QUANTIZABLE, "bfloat16", "cpu", cache="bucketed", **options)
    assert run.token_ids == eager.run(workload).token_ids
    assert eager.run(workload).trace.meta["step"] == "eager"


@needs_compiler
def test_packed_copies_of_the_weights_are_told_and_let_go():
    import gc

    made = plain_decoder(tiny("tiny-wide", num_layers=1, hidden_size=64), "bfloat16")
    stepper = make_stepper(made, "compile")
    loaded = len(compiled._loaded())
    plain = sum(p.numel() for n, p in made.named_parameters() if p.dim() == 2) * 2
    assert stepper.more_bytes(1) == plain  # the tied table is packed as the head
    generate(stepper, [[1, 2]], 3)
    assert stepper.more_bytes(1) == 0 and stepper.more_bytes(2) == plain
    assert len(compiled._loaded()) > loaded
    del stepper
    gc.collect()
    assert len(compiled._loaded()) == loaded


def test_a_context_beyond_the_cache_is_refused_before_anything_is_written(decoder, monkeypatch):
    stepper = make_stepper(decoder, "compile")
    cache = decoder.new_cache("bucketed", 1, 4)
    with torch.inference_mode():
        decoder(torch.tensor([[1, 2, 3, 4]]), cache, torch.arange(4)[None])
        kept = [store.clone() for store in cache.keys]
        with pytest.raises(CacheTooSmall, match="position 5 is beyond the bucketed cache of 4"):
            stepper(torch.tensor([[1]]), cache, torch.tensor([[4]]))
    assert cache.length == 4
    assert all(torch.equal(a, b) for a, b in zip(kept, cache.keys, strict=True))
    longer = decoder.new_cache("bucketed", 1, 1100)
    longer.length = 1024
    with pytest.raises(UserError, match="1025 tokens are more than the 1024"):
        stepper(torch.tensor([[1]]), longer, torch.tensor([[1024]]))


def test_an_error_of_the_compiler_costs_one_line_and_the_steps_are_eager(
    decoder, monkeypatch, capfd
):
    def fails(*_args, **_kwargs):
        def step(*_):
            raise RuntimeError("\n\nno such instruction\nmore about it")

        return step

    monkeypatch.setattr(torch, "compile", fails)
    stepper = make_stepper(decoder, "compile")
    assert generate(stepper, UNEVEN, 4) == generate(decoder, UNEVEN, 4)
    assert (stepper.mode, stepper.asked) == ("eager", "compile")
    assert stepper.compile_s == 0 and stepper.recompiles == 0 and stepper.more_bytes(1) == 0
    assert capfd.readouterr().err == (
        "step compile is not possible, steps are taken eagerly: RuntimeError: no such instruction\n"
    )


@needs_compiler
def test_an_error_inside_inductor_is_caught_too(monkeypatch, capfd):
    from torch._inductor import compile_fx

    def broken(*_args, **_kwargs):
        raise AssertionError("lowering failed")

    monkeypatch.setattr(compile_fx, "fx_codegen_and_compile", broken)
    made = plain_decoder(tiny("tiny-broken", num_layers=1))
    stepper = make_stepper(made, "max-autotune")
    assert generate(stepper, UNEVEN, 3) == generate(made, UNEVEN, 3)
    assert stepper.mode == "eager"
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "steps are taken eagerly" in error and "lowering" in error


def test_without_a_compiler_steps_are_eager_after_one_line(tmp_path):
    """In a process of its own: what compilers there are is looked up once."""
    code = (
        "from inferlab.decoding import generate\n"
        "from inferlab.decoding.steps import make_stepper\n"
        "from inferlab.models.load import load_decoder\n"
        "from tiny_models import tiny\n"
        "decoder = load_decoder(tiny(num_layers=1), 'float32', weights='random', pack=False)\n"
        "stepper = make_stepper(decoder, 'compile')\n"
        "print(stepper.mode, generate(stepper, [[1, 2]], 3) == generate(decoder, [[1, 2]], 3))\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "CXX": str(tmp_path / "g++")}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert answer.stdout == "eager True\n"
    assert answer.stderr == (
        "step compile is not possible, steps are taken eagerly: "
        "no C++ compiler works here: install g++ or name one in CXX\n"
    )


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="oneDNN packs bfloat16 on AVX-512 only")
def test_packed_weights_are_refused_and_a_backend_does_not_pack_them():
    packed = load_decoder(ONE_LAYER, "bfloat16", weights="random")
    with pytest.raises(UserError, match="load the decoder with pack=False"):
        make_stepper(packed, "compile")
    options = {"weights": "random", "step": "compile"}
    assert load_backend("torch", ONE_LAYER, "bfloat16", "cpu", **options).step == "compile"


def test_memory_is_asked_for_the_second_copy_of_the_weights(monkeypatch, decoder):
    from inferlab.models import placement

    room = placement.HEADROOM_BYTES + 200_000
    monkeypatch.setattr(placement, "available_bytes", lambda: room)
    wide = tiny("tiny-heavy", vocab_size=700)  # 138 kB, packed once more
    options = {"weights": "random"}
    assert load_backend("torch", wide, "bfloat16", "cpu", **options).step == "eager"
    with pytest.raises(BatchTooLarge, match="tiny-heavy and a packed copy of it needs"):
        load_backend("torch", wide, "bfloat16", "cpu", step="compile", **options)
    stepper = make_stepper(decoder, "compile")
    monkeypatch.setattr(placement, "available_bytes", lambda: placement.HEADROOM_BYTES + 10)
    with pytest.raises(BatchTooLarge, match="packing the weights of tiny-one-layer"):
        generate(stepper, UNEVEN, 3)
    assert stepper.mode == "compile"  # not a failure of the compiler


def test_what_cannot_run_is_refused_in_one_line(decoder, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="unknown step 'fast'; known: eager, compile"):
        make_stepper(decoder, "fast")
    for mode in ("graph", "kernels-graph"):
        with pytest.raises(UserError, match=f"step {mode} replays CUDA graphs"):
            make_stepper(decoder, mode)
    with pytest.raises(UserError, match="step kernels is not possible: .*Triton"):
        make_stepper(decoder, "kernels")
    for step in ("graph", "kernels"):
        with pytest.raises(UserError, match=f"step {step}"):
            load_backend("torch", ONE_LAYER, "float32", "cpu", weights="random", step=step)
    with pytest.raises(UserError, match="step compile needs the bucketed cache"):
        options = {"weights": "random", "cache": "dynamic", "step": "compile"}
        load_backend("torch", ONE_LAYER, "float32", "cpu", **options)
    with pytest.raises(UserError, match="needs the bucketed cache, not DynamicCache"):
        generate(make_stepper(decoder, "compile"), UNEVEN, 3, "dynamic")


@pytest.mark.parametrize("kind", sorted(TINY))
def test_eager_steps_are_the_decoders_with_any_cache(kind):
    made = load_decoder(TINY[kind], "float32", weights="random")
    stepper = make_stepper(made)
    assert stepper.mode == "eager" == STEPS[0] and stepper.config is made.config
    for cache in ("none", "dynamic", "static", "bucketed"):
        assert generate(stepper, UNEVEN, 5, cache) == generate(made, UNEVEN, 5)
    stepper.release()


def test_a_step_over_the_bucketed_cache_is_what_is_compiled(decoder):
    """The function that the compiler sees, run eagerly, for each kind of model."""
    for config in TINY.values():
        made = load_decoder(config, "float32", weights="random")
        step = compiled.eager_step(made)
        stepper = steps.Stepper(made, "compile", step)
        assert generate(stepper, UNEVEN, 20) == generate(made, UNEVEN, 20)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_steps_through_our_kernels_in_the_interpreter():
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    check_interpreted("interpreted_steps.py")
