"""A wheel that is built for CUDA, on a machine where no device is usable."""

import json
import warnings

import pytest
import torch
from hostile import the_error

from inferlab import profiles
from inferlab.profiles import current_profile


@pytest.fixture
def cuda_wheel(monkeypatch):
    """torch 13.0 for CUDA, an old driver: what torch says then."""

    def unavailable():
        said = "CUDA initialization: The NVIDIA driver\non your system is too old"
        warnings.warn(said, stacklevel=2)
        return False

    monkeypatch.delenv("INFERLAB_PROFILE")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    profiles._detected.cache_clear()
    yield
    profiles._detected.cache_clear()


def test_no_cuda_although_a_cuda_wheel_is_installed_doctor(call, cuda_wheel):
    code, out, err = call("doctor", "--no-probe", "--json")
    findings = {f["name"]: f for f in json.loads(out)["findings"]}
    cuda = findings["cuda"]
    assert cuda["state"] == "warn"
    assert "built for CUDA 13.0, but no device is usable" in cuda["detail"]
    assert "driver on your system is too old" in cuda["detail"]
    assert "nvidia-smi" in cuda["fix"]
    assert findings["profile"]["detail"].startswith("tiny")
    assert code == (0 if findings["model"]["state"] != "fail" else 1)
    assert err.count("\n") == 1  # the same as a lab says


def test_no_cuda_although_a_cuda_wheel_is_installed_labs(cuda_wheel, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's own warning is part of the line
        assert current_profile().name == current_profile().name == "tiny"
    err = capsys.readouterr().err
    assert err.startswith("note: this torch is built for CUDA 13.0, but no device is usable")
    assert "labs run on the CPU with the tiny profile" in err and err.count("\n") == 1


def test_a_cpu_wheel_says_nothing(cuda_wheel, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert current_profile().name == "tiny"
    assert capsys.readouterr().err == ""


def test_cuda_asked_for_by_name(call, cuda_wheel):
    code, out, err = call("measure", "--device", "cuda", "--json")
    assert (code, out) == (2, "")
    assert "no device is usable (CUDA initialization: The NVIDIA driver" in the_error(err)
    assert "choose --device cpu" in err


def test_torch_that_cannot_be_imported(call, monkeypatch):
    import builtins

    honest = builtins.__import__

    def broken(name, *arguments):
        if name == "torch":
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return honest(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", broken)
    code, out, err = call("doctor", "--no-probe", "--json")
    findings = {f["name"]: f for f in json.loads(out)["findings"]}
    assert code == 1 and "libcudart.so.13" in findings["cuda"]["detail"] and err == ""
