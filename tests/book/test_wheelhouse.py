"""A wheelhouse survives the journey: cut, checked, joined, installed without an index."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest
from toc import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import wheelhouse  # noqa: E402

WHEEL = "tiny_example-1.0-py3-none-any.whl"


@pytest.fixture
def folder(tmp_path):
    """A wheelhouse with one valid wheel, cut into pieces."""
    house = tmp_path / "house"
    house.mkdir()
    info = "tiny_example-1.0.dist-info"
    with zipfile.ZipFile(house / WHEEL, "w") as wheel:
        wheel.writestr("tiny_example/__init__.py", "ANSWER = 42\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-example\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    assert len(wheelhouse.cut(house / WHEEL, 200)) > 2
    wheelhouse.write_sums(house)
    return house


def install(folder, target):
    script = str(ROOT / "scripts" / "wheelhouse.py")
    return subprocess.run(
        [sys.executable, script, "install", str(folder), "--target", str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def refused(answer, words):
    assert answer.returncode == 2
    assert words in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_cut_wheel_is_joined_and_installed(folder, tmp_path):
    answer = install(folder, tmp_path / "there")
    assert answer.returncode == 0, answer.stderr
    code = "import tiny_example; print(tiny_example.ANSWER)"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "there",
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "42\n"


def test_a_damaged_piece_is_refused_before_anything_is_installed(folder, tmp_path):
    piece = next(folder.glob("*.part001"))
    piece.write_bytes(piece.read_bytes()[:-1] + b"!")
    refused(install(folder, tmp_path / "there"), "damaged")
    assert not (tmp_path / "there").exists()


def test_a_missing_piece_is_refused(folder, tmp_path):
    next(folder.glob("*.part000")).unlink()
    refused(install(folder, tmp_path / "there"), "missing")


def test_a_forgotten_piece_is_refused_even_if_the_list_does_not_name_it(folder, tmp_path):
    next(folder.glob("*.part001")).unlink()
    wheelhouse.write_sums(folder)
    refused(install(folder, tmp_path / "there"), "a piece of")


def test_a_list_that_points_elsewhere_is_refused(folder, tmp_path):
    (folder / wheelhouse.SUMS).write_text("0" * 64 + "  ../../etc/passwd\n")
    refused(install(folder, tmp_path / "there"), "missing")


def test_any_folder_is_not_a_wheelhouse(tmp_path):
    refused(install(tmp_path, tmp_path / "there"), "no wheelhouse")


def test_what_the_box_has_is_not_collected():
    present = {wheelhouse.normal(name) for name in wheelhouse.PRESENT}
    needed = {wheelhouse.normal(name) for name in wheelhouse.NEEDED}
    assert not present & needed
    assert "torch" in present


def test_the_peers_have_the_versions_of_the_requirements():
    (torchao,) = wheelhouse.required(wheelhouse.PEERS)
    assert torchao.startswith("torchao==")
    onnx = wheelhouse.required(wheelhouse.ONNX_PEERS)
    assert [line.partition(">")[0] for line in onnx] == list(wheelhouse.ONNX_PEERS)
    assert not any("#" in line for line in onnx)
    peers = {wheelhouse.normal(name) for name in wheelhouse.PEERS + wheelhouse.ONNX_PEERS}
    assert not peers & {wheelhouse.normal(name) for name in wheelhouse.PRESENT}


def test_there_is_one_onnxruntime():
    """Two packages with that folder overwrite each other."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = [line.partition(">")[0].strip() for line in lines if line.startswith("onnxruntime")]
    assert sorted(names) == ["onnxruntime-genai-cuda", "onnxruntime-gpu"]
