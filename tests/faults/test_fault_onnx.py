"""ONNX Runtime GenAI: not installed, broken, without its provider, out of room; a harmed export."""

import importlib.metadata
import sys

import pytest
from hostile import ROOT

sys.path.insert(0, str(ROOT / "tests" / "unit"))

from onnx_examples import Builder, FakeGenAI  # noqa: E402
from tiny_models import tiny  # noqa: E402

from inferlab.backends import genai, load_backend, onnx  # noqa: E402
from inferlab.doctor import Finding  # noqa: E402
from inferlab.errors import MeasurementError, UserError  # noqa: E402
from inferlab.models import onnx_export  # noqa: E402
from inferlab.models.placement import BatchTooLarge  # noqa: E402
from inferlab.workload import uniform_batch  # noqa: E402

SHAPE = tiny(head_dim=16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INFERLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_export.subprocess, "run", Builder())
    monkeypatch.setattr(onnx, "import_genai", FakeGenAI)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    return tmp_path / "cache"


def load(**options):
    return load_backend("onnx", SHAPE, "float32", weights="random", **options)


def refused(words, kind=UserError, action=load):
    with pytest.raises(kind, match=words) as caught:
        action()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["onnxruntime-genai-cuda", "onnxruntime-gpu", "onnx"])
def test_a_package_is_not_installed(cache, monkeypatch, missing):
    found = importlib.metadata.version

    def version(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(onnx, "import_genai", genai.import_genai)
    refused(f"{missing} is not installed: run `pip install -r requirements.txt`.*gpu-install")
    assert not cache.exists()


def test_two_onnxruntimes_overwrite_each_other(monkeypatch):
    found = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "1.31" if n == "onnxruntime" else found(n)
    )
    refused("both installed and overwrite each other.*pip uninstall", action=genai.import_genai)


@pytest.mark.parametrize("module", ["onnxruntime_genai", "onnxruntime"])
def test_a_library_is_missing(monkeypatch, module):
    def broken(name):
        raise ImportError("libsomething.so.9: cannot open shared object file\nmore")

    monkeypatch.setattr(genai, "import_module", broken)
    work = genai.import_genai if module == "onnxruntime_genai" else genai.real_providers
    refused("cannot be imported .libsomething.so.9.*--force-reinstall", action=work)


def test_cuda_is_in_the_list_and_not_there(cache, monkeypatch):
    """The module names CUDA on any machine; a session says what is true."""
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(genai, "real_providers", lambda asked=(): ["CPUExecutionProvider"])
    monkeypatch.setattr("inferlab.models.placement.unusable_cuda", lambda: None)
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    refused(
        "no working CUDAExecutionProvider here.*choose --device cpu",
        action=lambda: load_backend(
            "onnx", SHAPE, "float16", "cuda", precision="fp16", weights="random"
        ),
    )
    torch.backends.cuda.enable_cudnn_sdp(was_on)
    assert not list((cache / "onnx").glob("*")) if cache.exists() else True


def provider_finding(call):
    import json

    findings = json.loads(call("doctor", "--no-probe", "--json")[1])["findings"]
    (finding,) = [f for f in findings if f["name"] == "onnxruntime providers"]
    return finding


def test_the_doctor_says_what_sessions_get(call, monkeypatch):
    import torch

    finding = provider_finding(call)
    assert finding["state"] == "ok" and finding["detail"].startswith(("CPU", "CUDA"))
    asked = []
    monkeypatch.setattr(genai, "real_providers", lambda names: asked.append(names) or
                        ["CPUExecutionProvider"])  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("inferlab.profiles.unusable_cuda", lambda: None)
    monkeypatch.setattr("inferlab.doctor._cuda", lambda: Finding("cuda", "ok", "pretended"))
    finding = provider_finding(call)
    assert asked == [["CUDAExecutionProvider"]]
    assert finding["state"] == "warn" and finding["detail"].startswith("CPU; not CUDA")
    monkeypatch.setattr(genai, "check_one_onnxruntime", two_runtimes)
    finding = provider_finding(call)
    assert finding["state"] == "warn" and finding["detail"] == "two of them" and finding["fix"]


def two_runtimes():
    raise UserError("two of them")


def test_a_lab_can_ask_beforehand(monkeypatch):
    assert genai.why_unusable() is None
    monkeypatch.setattr(genai, "check_one_onnxruntime", two_runtimes)
    assert genai.why_unusable() == "two of them"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("disk", "disk of .*onnx is full: free some space or set INFERLAB_CACHE"),
        ("killed", "stopped by signal 9, probably for want of memory"),
        ("error", "export failed: ValueError: no such layer; check that onnxruntime-gpu"),
    ],
)
def test_the_export_fails_and_leaves_nothing(cache, monkeypatch, how, words):
    monkeypatch.setattr(onnx_export.subprocess, "run", Builder(how))
    refused(words)
    assert not [path for path in (cache / "onnx").iterdir() if path.is_dir()]
    monkeypatch.setattr(onnx_export.subprocess, "run", Builder())
    load()  # and the next run starts afresh


def test_too_little_room_is_said_beforehand(cache, monkeypatch):
    from inferlab.models import cachefolder

    monkeypatch.setattr(cachefolder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    refused("tiny as ONNX int4 needs .* which has 10.0 B free")


@pytest.mark.parametrize("harm", ["weights", "graph", "gone", "record"])
def test_a_damaged_export_is_named(cache, harm):
    folder = load().folder
    if harm == "record":
        (folder / "SOURCE.json").write_text("{")
    elif harm == "gone":
        (folder / "model.last.onnx").unlink()
    else:
        file = folder / ("model.onnx" if harm == "graph" else "genai_config.json")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    refused(f"cached ONNX export .*delete {folder} and run again")


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ("Failed to allocate memory for requested buffer", BatchTooLarge, "choose a smaller"),
        ("CUDA out of memory", BatchTooLarge, "choose a smaller batch"),
        ("Non-zero status code\nand a page more", MeasurementError, "failed: Non-zero status"),
    ],
)
def test_the_runtime_fails_in_a_run(cache, monkeypatch, message, kind, words):
    monkeypatch.setattr(onnx, "import_genai", lambda: FakeGenAI("run", message))
    backend = load()
    refused(words, kind, lambda: backend.run(uniform_batch(61, 2, 4, 3)))


def test_the_runtime_refuses_the_file(cache, monkeypatch):
    monkeypatch.setattr(onnx, "import_genai", lambda: FakeGenAI("load", "Load model failed"))
    refused("cannot load model.last.onnx, delete .* and run again: Load model", MeasurementError)


def test_a_graph_that_is_none(tmp_path):
    from inferlab.models.onnx_graph import read_graph

    (tmp_path / "model.onnx").write_bytes(b"no graph at all")
    refused("cannot read the ONNX graph model.onnx", action=lambda: read_graph(
        tmp_path / "model.onnx"))  # fmt: skip


@pytest.mark.parametrize("device", ["cuda:1", "cuda:7"])
def test_only_the_first_gpu(cache, monkeypatch, device):
    monkeypatch.setattr(onnx, "torch_device", lambda name: __import__("torch").device(name))
    refused("runs on the first GPU", action=lambda: load(device=device))
