import json

import pytest
from onnx_examples import Builder
from tiny_models import tiny

from inferlab.errors import UserError
from inferlab.models import onnx_export
from inferlab.models.onnx_export import ExportOptions, ensure_export, export_folder

SHAPE = tiny(head_dim=16)
RANDOM = ExportOptions(weights="random")


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """An empty cache, and a builder that takes no time."""
    monkeypatch.setenv("INFERLAB_CACHE", str(tmp_path / "cache"))
    stub = Builder()
    monkeypatch.setattr(onnx_export.subprocess, "run", stub)
    return stub


def test_an_export_is_made_once_and_told_about(builder, tmp_path):
    lines = []
    folder = ensure_export(SHAPE, RANDOM, lines.append)
    assert ensure_export(SHAPE, RANDOM, lines.append) == folder
    assert len(builder.commands) == 1
    assert lines[0].startswith("exporting tiny as ONNX int4, once")
    assert lines[1:] == ["tiny as ONNX int4 is ready"]
    assert folder.parent == tmp_path / "cache" / "onnx"
    left = {path.name for path in folder.iterdir()}
    assert left == {"model.onnx", "model.last.onnx", "genai_config.json", "SOURCE.json",
                    "verified.json"}  # fmt: skip
    record = json.loads((folder / "SOURCE.json").read_text())
    assert record["schema"] == "inferlab.onnx/1" and set(record["files"]) == left - {
        "SOURCE.json", "verified.json",
    }  # fmt: skip
    assert record["origin"]["builder"].startswith("onnxruntime-genai-cuda==0.")
    # the one that a run names must replace it: GenAI would add it to a list
    assert json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"] == 0


def test_the_builder_runs_offline_without_telemetry_and_remote_code(builder, monkeypatch):
    seen = {}

    def run(command, env, **_):
        seen.update(env)
        return builder(command)

    monkeypatch.setattr(onnx_export.subprocess, "run", run)
    ensure_export(SHAPE, ExportOptions(weights="random", block_size=64, accuracy_level=1))
    assert seen["ORT_DISABLE_TELEMETRY"] == seen["HF_HUB_OFFLINE"] == "1"
    (command,) = builder.commands
    extra = command[command.index("--extra_options") + 1 :]
    assert extra == ["hf_token=false", "hf_remote=false", "block_size=64", "is_symmetric=true",
                     "accuracy_level=1"]  # fmt: skip
    assert command[command.index("-p") + 1] == "int4" and command[command.index("-e") + 1] == "cpu"


def test_a_tied_asymmetric_table_is_not_shared():
    """The builder of 0.18 would write a graph that does not load."""
    asymmetric = ExportOptions(is_symmetric=False)
    assert "shared_embeddings=false" in asymmetric.builder_options(tied=True)
    assert "shared_embeddings=false" not in asymmetric.builder_options(tied=False)
    assert "shared_embeddings=false" not in ExportOptions().builder_options(tied=True)
    assert ExportOptions("fp32").builder_options(True) == ["hf_token=false", "hf_remote=false"]


def test_every_option_has_a_folder_of_its_own(builder):
    options = [
        RANDOM,
        ExportOptions("int8", weights="random"),
        ExportOptions("fp32", weights="random"),
        ExportOptions(equivalent="rotated", weights="random"),
        ExportOptions(equivalent="rotated", seed=1, weights="random"),
        ExportOptions(equivalent="permuted", weights="random"),
        ExportOptions(weights="random", block_size=64),
        ExportOptions(weights="random", is_symmetric=False),
        ExportOptions(weights="random", accuracy_level=4),
        ExportOptions(weights="random", device="cuda"),
    ]
    paths = {export_folder(SHAPE, option).path for option in options}
    paths.add(export_folder(tiny(head_dim=16, num_layers=3), RANDOM).path)
    assert len(paths) == len(options) + 1


def test_what_does_not_change_a_float_export_does_not_name_it():
    a, b = ExportOptions("fp32", block_size=64), ExportOptions("fp32", accuracy_level=1)
    assert a.key == b.key == "plain-fp32-cpu"


def test_copies_are_written_for_the_builder_and_removed(builder, monkeypatch):
    from safetensors import safe_open

    seen = {}

    def run(command, **_):
        from pathlib import Path

        source = Path(command[command.index("-i") + 1])
        with safe_open(str(source / "model.safetensors"), "pt") as file:
            seen["head"] = file.get_tensor("lm_head.weight")
        seen.update(json.loads((source / "config.json").read_text()))
        return builder(command)

    monkeypatch.setattr(onnx_export.subprocess, "run", run)
    folder = ensure_export(SHAPE, ExportOptions(equivalent="rotated", weights="random"))
    assert not (folder / "source").exists()
    assert seen["architectures"] == ["LlamaForCausalLM"] and seen["tie_word_embeddings"] is False
    assert str(seen["head"].dtype) == "torch.float32"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int3"}, "unknown precision 'int3' .* known: int4, int8, fp32"),
        ({"precision": "fp16"}, "unknown precision 'fp16' of an ONNX export for cpu"),
        ({"block_size": 48}, "block_size must be one of 16, 32, 64, 128, 256, not 48"),
        ({"accuracy_level": 5}, "accuracy_level must be 0 to 4, not 5"),
    ],
)
def test_options_that_no_builder_knows(options, words):
    with pytest.raises(UserError, match=words):
        ExportOptions(**options)


def test_unknown_weights_and_copies(builder):
    with pytest.raises(UserError, match="unknown kind 'turned' of copy; known: plain"):
        ensure_export(SHAPE, ExportOptions(equivalent="turned", weights="random"))
    with pytest.raises(UserError, match="no published weights"):
        ensure_export(SHAPE, ExportOptions())
    assert not builder.commands


def test_a_head_dim_that_the_kernel_lacks_is_said_beforehand(builder):
    with pytest.raises(UserError, match="needs a head_dim that 16 divides; tiny has 8"):
        ensure_export(tiny(), RANDOM)
