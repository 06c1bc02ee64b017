import dataclasses

import pytest
import torch
from tiny_models import QUANTIZABLE, TINY, tiny

from inferlab import bench
from inferlab.backends import BACKENDS, load_backend
from inferlab.errors import MeasurementError, UserError
from inferlab.models import placement
from inferlab.models.cost import decode_cost
from inferlab.models.placement import BatchTooLarge, check_host_memory, torch_device
from inferlab.quant.formats import get_format
from inferlab.roofline import Ceilings
from inferlab.workload import scheduled_at, unequal_batch, uniform_batch

WORKLOAD = unequal_batch(61, [3, 11, 7, 1], [6, 2, 9, 1], seed=2)


@pytest.mark.parametrize("kind", TINY)
def test_hf_and_torch_agree_on_random_weights(kind):
    runs = [
        load_backend(name, TINY[kind], "float32", weights="random").run(WORKLOAD)
        for name in ("hf", "torch")
    ]
    assert runs[0].token_ids == runs[1].token_ids


@pytest.mark.parametrize("name", ["hf", "torch"])
def test_the_trace_has_one_event_a_step_from_zero(name):
    backend = load_backend(name, tiny(), "bfloat16", weights="random")
    run = backend.run(WORKLOAD)
    assert [len(tokens) for tokens in run.token_ids] == [6, 2, 9, 1]
    for spec, request in zip(WORKLOAD.requests, run.trace.requests, strict=True):
        assert (request.id, request.prompt_tokens) == (spec.id, spec.prompt_len)
        assert request.scheduled == request.sent == 0
        assert [count for _, count in request.events] == [1] * spec.output_len
        assert request.events[0][0] > 0
    # one step, one time: the batch moves together
    assert len({request.events[0] for request in run.trace.requests}) == 1
    meta = run.trace.meta
    assert meta["label"] == "measured" and meta["weights"] == "random"
    assert (meta["backend"], meta["model"], meta["dtype"]) == (name, "tiny", "bfloat16")
    assert (backend.name, backend.config.name, backend.dtype) == (name, "tiny", "bfloat16")


@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
def test_the_torch_backend_has_every_cache(cache):
    backend = load_backend("torch", tiny(), "float32", weights="random", cache=cache)
    again = load_backend("torch", tiny(), "float32", weights="random")
    assert backend.run(WORKLOAD).token_ids == again.run(WORKLOAD).token_ids
    assert backend.run(WORKLOAD).trace.meta["cache"] == cache


def test_quantized_weights_come_with_their_format_and_what_was_kept():
    plain = load_backend("torch", QUANTIZABLE, weights="random")
    backend = load_backend("torch", QUANTIZABLE, weights="random", quant="int8", keep=("head",))
    workload = uniform_batch(64, 3, 5, 4)
    assert (plain.weight_format, plain.kept) == (None, ())
    assert (backend.weight_format.name, backend.kept) == ("int8", ("head",))
    assert (plain.kernel, backend.kernel) == ("Projection", "PackedInt8Linear+Projection")
    run = backend.run(workload)
    assert run.trace.meta["format"] == "int8" and "format" not in plain.run(workload).trace.meta
    assert [len(tokens) for tokens in run.token_ids] == [4, 4, 4]


def test_a_case_of_quantized_weights_says_so_and_moves_fewer_bytes():
    limits = Ceilings(1e10, 1e12)
    shape = bench.Shape(2, 5, 4)
    plain, low = (
        bench.generation_case(
            load_backend("torch", QUANTIZABLE, weights="random", **options), shape, ceilings=limits
        )
        for options in ({}, {"quant": "int4-g32"})
    )
    assert "format" not in plain.params and low.params["format"] == "int4-g32"
    assert low.predicted["decode_memory_s"] < plain.predicted["decode_memory_s"]
    assert low.predicted["tpot_s"] < plain.predicted["tpot_s"]
    config, cost = QUANTIZABLE, decode_cost(QUANTIZABLE, "bfloat16", 2, 7, get_format("int4-g32"))
    seconds = low.predicted["tpot_s"]
    found = bench.mbu_ratio(config, "bfloat16", shape, seconds, limits, get_format("int4-g32"))
    assert found == pytest.approx(cost.bytes / (seconds * 1e10))
    assert low.run()["mbu_ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("vllm",), {}, ", ".join(BACKENDS)),
        (("hf", "gpt-5"), {}, "smollm2-135m"),
        (("torch", "smollm2-135m", "int3"), {}, "bfloat16"),
        (("torch", "smollm2-135m", "float32", "tpu"), {}, "cpu, cuda"),
        (("torch", "smollm2-135m"), {"cache": "ring"}, "offloaded"),
        (("torch", QUANTIZABLE), {"weights": "random", "quant": "int3"}, "known: int8"),
        (("torch", QUANTIZABLE), {"weights": "random", "quant": "int4-g128"}, "use int8"),
        (("hf", "smollm2-135m"), {"quant": "int8"}, "known: weights, seed"),
        (("hf", "smollm2-135m"), {"cache": "static"}, "known: weights, seed"),
        (("torch", tiny()), {}, "weights='random'"),
        (("hf", tiny()), {"weights": "zero"}, "real, random"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(arguments, options, says):
    with pytest.raises(UserError, match=says) as caught:
        load_backend(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(UserError, match="choose --device cpu"):
        torch_device("cuda")


def test_attention_on_a_gpu_needs_no_plan_for_each_context_length(monkeypatch):
    """cuDNN's attention would build one at every step of the first answer."""
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch_device("cuda")
    now_on = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(was_on)
    assert not now_on


@pytest.mark.parametrize("name", ["hf", "torch"])
def test_requests_that_are_due_later_are_refused(name):
    backend = load_backend(name, tiny(), "float32", weights="random")
    with pytest.raises(UserError, match="due at 0.5 s"):
        backend.run(scheduled_at(uniform_batch(61, 2, 3, 4), [0.0, 0.5]))


@pytest.mark.parametrize("name", ["hf", "torch"])
def test_a_batch_that_cannot_fit_is_refused_before_it_is_allocated(name, monkeypatch):
    backend = load_backend(name, tiny(), "float32", weights="random")
    monkeypatch.setattr(placement, "available_bytes", lambda: 300 * 2**20)
    backend.run(WORKLOAD)
    with pytest.raises(BatchTooLarge, match="a batch of 20000 with 79 positions"):
        backend.run(uniform_batch(61, 20_000, 40, 40))
    assert issubclass(BatchTooLarge, MeasurementError)


@pytest.mark.parametrize("name", ["hf", "torch"])
def test_a_model_that_cannot_fit_is_refused_before_it_is_allocated(name, monkeypatch):
    monkeypatch.setattr(placement, "available_bytes", lambda: 10**9)
    with pytest.raises(BatchTooLarge, match="loading llama-3.1-8b in bfloat16 needs 16.1 GB"):
        load_backend(name, "llama-3.1-8b", "bfloat16", weights="random")


def test_the_gpu_judges_its_own_memory():
    check_host_memory(1e18, "a test", torch.device("cuda"))


@pytest.mark.parametrize("name", ["hf", "torch"])
def test_too_long_a_context_is_refused(name):
    backend = load_backend(name, tiny(), "float32", weights="random")
    with pytest.raises(UserError, match="129 tokens are more than the 128"):
        backend.run(uniform_batch(61, 1, 100, 30))


def test_an_out_of_memory_error_of_the_device_passes_through(monkeypatch):
    backend = load_backend("torch", tiny(), "float32", weights="random")

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend.decoder, "new_cache", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        backend.run(WORKLOAD)


def test_a_narrow_shape_without_a_source_can_be_loaded():
    small = dataclasses.replace(tiny(), hidden_size=16, num_q_heads=2, num_kv_heads=1)
    for name in ("hf", "torch"):
        run = load_backend(name, small, "bfloat16", weights="random").run(WORKLOAD)
        assert len(run.token_ids) == 4
