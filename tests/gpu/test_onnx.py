"""ONNX Runtime GenAI on a CUDA device, where its provider really loads."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from tiny_models import TINY  # noqa: E402

from inferlab.backends import load_backend  # noqa: E402
from inferlab.backends.genai import why_unusable  # noqa: E402
from inferlab.workload import unequal_batch, uniform_batch  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def provider():
    if why := why_unusable("cuda"):
        pytest.skip(why)


@pytest.mark.parametrize(
    "workload",
    [uniform_batch(61, 3, 9, 12, seed=1), unequal_batch(61, [3, 11, 7, 1], [6, 2, 9, 1], seed=2)],
)
def test_greedy_tokens_in_float32_are_those_of_our_decoder(workload, tmp_path, monkeypatch):
    monkeypatch.setenv("INFERLAB_CACHE", str(tmp_path))
    config = dataclasses.replace(TINY["llama-untied"], head_dim=64)
    options = {"dtype": "float32", "device": "cuda"}
    peer = load_backend("onnx", config, precision="fp32", equivalent="plain", weights="random",
                        **options)  # fmt: skip
    # The export's random weights are drawn on the CPU.
    ours = load_backend("torch", config, "float32", "cpu", weights="random")
    assert peer.run(workload).token_ids == ours.run(workload).token_ids


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16"])
def test_the_real_model_runs_and_says_its_format(precision):
    peer = load_backend("onnx", "smollm2-135m", "float16", "cuda", precision=precision)
    run = peer.run(uniform_batch(49152, 4, 64, 16))
    assert [len(tokens) for tokens in run.token_ids] == [16] * 4
    assert peer.device.type == "cuda"
    if precision != "fp16":
        assert peer.weight_format.scale_bytes == 2
        assert peer.bytes_per_step() < 0.7 * 134_515_008 * 2
    assert peer.logits(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, 49152)
