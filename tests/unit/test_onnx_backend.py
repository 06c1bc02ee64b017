import dataclasses
import importlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from onnx_examples import VOCABULARY, Builder, FakeGenAI
from tiny_models import TINY, tiny

from inferlab.backends import load_backend, onnx
from inferlab.backends.genai import import_genai, real_providers
from inferlab.bench import Shape, generation_case
from inferlab.errors import MeasurementError, UserError
from inferlab.models import onnx_export, placement
from inferlab.models.placement import BatchTooLarge
from inferlab.roofline import Ceilings
from inferlab.workload import unequal_batch, uniform_batch

SHAPE = tiny(head_dim=16)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Loads the backend over a stubbed builder and runtime."""
    monkeypatch.setenv("INFERLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_export.subprocess, "run", Builder())

    def load(fake=None, **options):
        monkeypatch.setattr(onnx, "import_genai", lambda: fake or FakeGenAI())
        options = {"dtype": "float32", "weights": "random", **options}
        return load_backend("onnx", SHAPE, **options)

    return load


def test_one_event_a_step_and_exact_lengths(make):
    workload = unequal_batch(VOCABULARY, [3, 11, 7, 1], [6, 2, 9, 1], seed=2)
    run = make().run(workload)
    for spec, request, tokens in zip(
        workload.requests, run.trace.requests, run.token_ids, strict=True
    ):
        last = spec.prompt_token_ids[-1]
        assert tokens == [(last + 1 + i) % VOCABULARY for i in range(spec.output_len)]
        assert [count for _, count in request.events] == [1] * spec.output_len
        assert request.scheduled == request.sent == 0 < request.events[0][0]
        assert request.prompt_tokens == spec.prompt_len
    meta = run.trace.meta
    assert (meta["backend"], meta["precision"], meta["dtype"]) == ("onnx", "int4", "float32")
    assert meta["accuracy_level"] == 4 and meta["label"] == "measured"


def test_an_end_token_that_comes_up_is_replaced_by_one_that_does_not(make):
    """The highest id is the first choice; this prompt counts right through it."""
    fake = FakeGenAI()
    backend = make(fake)
    near_the_end = uniform_batch(VOCABULARY, 1, 1, 1)
    spec = near_the_end.requests[0]
    spec = dataclasses.replace(spec, prompt_token_ids=(VOCABULARY - 3,), output_len=8)
    run = backend.run(dataclasses.replace(near_the_end, requests=(spec,)))
    assert run.token_ids == [[(VOCABULARY - 2 + i) % VOCABULARY for i in range(8)]]
    ends = [model["eos_token_id"] for model in fake.loaded]
    assert ends[0] == VOCABULARY - 1 and len(ends) == 2


def test_a_vocabulary_that_comes_up_whole_is_refused(make):
    backend = make()
    with pytest.raises(MeasurementError, match="ends sequences early"):
        backend.run(uniform_batch(VOCABULARY, 1, 4, VOCABULARY + 4))


def test_threads_are_those_of_torch_and_stop_spinning_after_a_run(make):
    fake = FakeGenAI()
    assert make(fake).threads == torch.get_num_threads()
    make(fake, threads=3)
    session = fake.loaded[-1]["decoder"]["session_options"]
    assert session["intra_op_num_threads"] == 3
    assert session["session.force_spinning_stop"] == "1"
    with pytest.raises(UserError, match="threads must be at least 1"):
        make(fake, threads=0)


def test_equal_prompts_compute_logits_of_the_last_position_only(make):
    fake = FakeGenAI()
    backend = make(fake)
    backend.run(uniform_batch(VOCABULARY, 2, 5, 3))
    assert [m["decoder"]["filename"] for m in fake.loaded] == ["model.last.onnx"]
    backend.run(unequal_batch(VOCABULARY, [5, 3], 3))
    assert [m["decoder"]["filename"] for m in fake.loaded] == ["model.last.onnx", "model.onnx"]
    backend.run(unequal_batch(VOCABULARY, [5, 3], 3))
    assert len(fake.loaded) == 2
    backend.release()
    backend.run(uniform_batch(VOCABULARY, 2, 5, 3))
    assert len(fake.loaded) == 3


def test_logits_have_all_positions_in_float32(make):
    backend = make()
    logits = backend.logits(torch.zeros(2, 7, dtype=torch.int64))
    assert logits.shape == (2, 7, VOCABULARY) and logits.dtype == torch.float32
    many = torch.arange(onnx.MOST_ROWS + 3)[:, None] % VOCABULARY  # more than it takes at once
    apart = torch.cat([backend.logits(row[None]) for row in many])
    assert torch.equal(backend.logits(many), apart)
    with pytest.raises(UserError, match=r"must be \[B, T\]"):
        backend.logits(torch.zeros(7, dtype=torch.int64))
    with pytest.raises(UserError, match="token id 61 lies outside"):
        backend.logits(torch.full((1, 2), VOCABULARY))
    with pytest.raises(UserError, match="token id -1 lies outside"):
        backend.logits(torch.full((1, 2), -1))


def test_the_format_and_bytes_come_from_the_graph(make):
    quantized, plain = make(), make(precision="fp32")
    assert quantized.weight_format.name == "onnx-int4-b32-sym" and quantized.kept == ()
    assert plain.weight_format is None
    assert quantized.bytes_per_step() < plain.bytes_per_step() == VOCABULARY * 48 * 4 + 48 * 4


def test_a_case_predicts_from_the_bytes_of_the_graph(make):
    """What the roofline counts for the backend's format is what lies in the file."""
    ceilings = Ceilings(1e9, 1e15)
    quantized, plain = make(), make(precision="fp32")
    shape = Shape(1, 4, 3)
    cases = [generation_case(b, shape, ceilings=ceilings) for b in (quantized, plain)]
    assert cases[0].params["format"] == "onnx-int4-b32-sym" and "format" not in cases[1].params
    assert cases[0].predicted["tpot_s"] < cases[1].predicted["tpot_s"]
    assert set(cases[0].run()) == {"ttft_s", "tpot_s", "output_tok_per_s", "mbu_ratio"}


def test_a_batch_or_prompt_that_does_not_fit_is_refused(make, monkeypatch):
    backend = make()
    with pytest.raises(UserError, match="129 tokens are more than the 128"):
        backend.run(uniform_batch(VOCABULARY, 1, 100, 30))
    with pytest.raises(UserError, match="outside the vocabulary"):
        backend.run(uniform_batch(900, 4, 40, 2))
    monkeypatch.setattr(placement, "available_bytes", lambda: 300 * 2**20)
    with pytest.raises(BatchTooLarge, match="a batch of 20000 with 79 positions"):
        backend.run(uniform_batch(VOCABULARY, 20_000, 40, 40))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"dtype": "bfloat16"}, "int4 export keeps .* in float32 on cpu.*choose dtype float32"),
        ({"equivalent": "turned"}, "unknown kind 'turned'"),
        ({"weights": "stolen"}, "unknown weights 'stolen'|no published weights"),
        ({"cache": "paged"}, "has no option 'cache'; known: precision, equivalent"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(make, options, words):
    with pytest.raises(UserError, match=words) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def own_cache(monkeypatch):
    """A cache that leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("INFERLAB_CACHE", folder)
        yield Path(folder)


@pytest.mark.slow
def test_greedy_tokens_are_those_of_our_decoder(own_cache):
    """The real builder and runtime, on random weights: equal and unequal prompts."""
    config = dataclasses.replace(TINY["llama-rope-scaled"], head_dim=16)
    options = {"dtype": "float32", "weights": "random"}
    peer = load_backend("onnx", config, precision="fp32", threads=1, **options)
    ours = load_backend("torch", config, **options)
    for workload in (
        uniform_batch(VOCABULARY, 3, 9, 12, seed=1),
        unequal_batch(VOCABULARY, [3, 11, 7, 1], [6, 2, 9, 1], seed=2),
    ):
        assert peer.run(workload).token_ids == ours.run(workload).token_ids


@pytest.mark.slow
def test_the_real_model_in_float32_and_its_logits(own_cache, monkeypatch):
    monkeypatch.delenv("INFERLAB_CACHE")
    from inferlab.models.load import ensure_model

    model = ensure_model("smollm2-135m")
    monkeypatch.setenv("INFERLAB_CACHE", str(own_cache))
    (own_cache / "models").symlink_to(model.parent)
    peer = load_backend("onnx", "smollm2-135m", "float32", precision="fp32", threads=1)
    ours = load_backend("torch", "smollm2-135m", "float32")
    workload = unequal_batch(49152, [5, 33, 1, 16], [8, 8, 8, 5], seed=5)
    assert peer.run(workload).token_ids == ours.run(workload).token_ids
    ids = torch.randint(49152, (2, 24), generator=torch.Generator().manual_seed(0))
    decoder = ours.decoder
    with torch.inference_mode():
        expected = decoder(
            ids, decoder.new_cache("static", 2, 24), torch.arange(24)[None], all_positions=True
        )
    assert (peer.logits(ids) - expected).abs().max() < 1e-3
    assert peer.bytes_per_step() == 538_060_032  # all weights, the table once, in float32


def test_the_runtime_is_imported_without_telemetry(monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert import_genai() is importlib.import_module("onnxruntime_genai")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert real_providers() == ["CPUExecutionProvider"]
