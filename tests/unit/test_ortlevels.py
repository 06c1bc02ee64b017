"""A step in ONNX Runtime: the decoder's logits at every level, fewer nodes, one clear line."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny

from inferlab import ortlevels
from inferlab.decoding.generate import generate
from inferlab.errors import UserError
from inferlab.models import onnx_step
from inferlab.models.load import load_decoder

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SHAPE = tiny("tiny-step")
PROMPT = [5, 3, 60, 1, 7, 7, 2]


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFERLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def sessions(cache_folder):
    return ortlevels.open_levels(SHAPE, "traced", "random")


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(SHAPE, "float32", "cpu", "random")


def test_every_level_writes_the_decoders_tokens(sessions, decoder):
    reference = generate(decoder, [PROMPT], 6)[0]
    past, token = ortlevels.prompt_cache(decoder, PROMPT)
    assert past[0].shape == (1, SHAPE.num_kv_heads, len(PROMPT), SHAPE.head_dim)
    for session in sessions.values():
        assert ortlevels.write(session, past, token, 5) == reference
        assert session.context_len == len(PROMPT) + 5


def test_logits_of_a_level_are_those_of_the_decoder(sessions, decoder):
    past, token = ortlevels.prompt_cache(decoder, PROMPT)
    cache = decoder.new_cache("static", 1, 16)
    with torch.inference_mode():
        decoder(torch.tensor([PROMPT]), cache, torch.arange(len(PROMPT))[None])
        wanted = decoder(torch.tensor([[token]]), cache, torch.tensor([[len(PROMPT)]]))[0].numpy()
    for session in sessions.values():
        session.fill(past)
        assert np.allclose(session.step(token, keep=False), wanted, atol=1e-4)
        assert session.context_len == len(PROMPT)


def test_each_level_leaves_fewer_nodes_or_as_many(sessions, decoder):
    past, _ = ortlevels.prompt_cache(decoder, PROMPT)
    counts = []
    for session in sessions.values():
        session.fill(past)
        counts.append(session.count_nodes())
        assert not Path(session._profile.name).exists()
    assert counts == sorted(counts, reverse=True)
    assert counts[0] < 200 * SHAPE.num_layers  # of one step, not of all that were profiled
    assert counts[0] > 1.2 * counts[-1]
    case = ortlevels.level_case(sessions["all"], "traced", counts[-1], steps=2)
    values = case.run()
    assert 0 < values["fastest_step_s"] <= values["step_s"]
    assert case.params["variant"] == "ort-all" and case.params["nodes"] == counts[-1]


def test_the_graph_is_made_once_and_a_folded_one_is_another(sessions):
    lines = []
    path = onnx_step.ensure_step(SHAPE, "traced", "random", lines.append)
    assert path.is_file() and not lines
    folded = onnx_step.step_folder(SHAPE, "folded", "random").path
    assert folded != path.parent


def test_a_cache_of_another_model_is_refused(sessions):
    with pytest.raises(UserError, match="has 4 tensors here, not 1"):
        sessions["basic"].fill([np.zeros((1, 2, 3, 8), np.float32)])


def test_a_step_without_a_prompt_is_refused(cache_folder, sessions):
    path = onnx_step.ensure_step(SHAPE, "traced", "random")
    fresh = ortlevels.StepSession(path, SHAPE, "disabled")
    with pytest.raises(UserError, match="cache is empty"):
        fresh.step(0)


def test_unknown_words_are_refused(cache_folder, sessions, tmp_path):
    path = onnx_step.ensure_step(SHAPE, "traced", "random")
    with pytest.raises(UserError, match="unknown level 'best'; known: disabled"):
        ortlevels.StepSession(path, SHAPE, "best")
    with pytest.raises(UserError, match="unknown graph 'small'; known: traced"):
        onnx_step.step_folder(SHAPE, "small")
    harmed = tmp_path / "step.onnx"
    harmed.write_bytes(b"not a graph")
    with pytest.raises(UserError, match="cannot open step.onnx"):
        ortlevels.StepSession(harmed, SHAPE, "all")


def test_a_missing_runtime_or_exporter_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime cannot be imported"):
        ortlevels.open_levels(SHAPE, "traced", "random")
    monkeypatch.setattr(onnx_step, "PACKAGES", ("no-such-package",))
    with pytest.raises(UserError, match="no-such-package is not installed"):
        onnx_step.step_folder(SHAPE, "traced", "random")


def test_a_gpu_without_its_libraries_leaves_the_cpu(monkeypatch):
    assert ortlevels.usable_device("cpu") == ("cpu", "")

    def no_gpu(device):
        if device != "cpu":
            raise UserError("no working provider")

    monkeypatch.setattr(ortlevels, "check_provider", no_gpu)
    monkeypatch.setattr(ortlevels, "torch_device", torch.device)
    assert ortlevels.usable_device("cuda") == ("cpu", "no working provider")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    place, why = ortlevels.usable_device("cpu")
    assert place is None and "cannot be imported" in why


def test_an_export_that_fails_is_one_line(monkeypatch, tmp_path, decoder):
    def fail(*args, **kwargs):
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match="export failed: no such operator; check"):
        onnx_step.export_step(decoder, tmp_path / "step.onnx")


def test_preparing_says_an_error_in_one_line(monkeypatch, capsys):
    def fail(config):
        raise UserError("no room")

    monkeypatch.setattr(onnx_step, "ensure_step", fail)
    assert onnx_step.main() == 2
    assert capsys.readouterr().err == "no room\n"
