"""A wheel holds everything that the package needs, and works without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from hostile import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(
        ROOT / "inferlab", source / "inferlab", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation",
         "--no-index", "-w", str(out)],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "inferlab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not files - names, "files that the wheel lacks"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site),
         str(wheel)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    def cli(*arguments, cwd=tmp_path):
        code = (
            f"import sys; sys.path.insert(0, {str(site)!r}); import inferlab;"
            f"assert inferlab.__file__.startswith({str(site)!r});"
            "from inferlab.cli.app import main; main(sys.argv[1:])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    assert cli("--version")[0] == 0
    code, out, err = cli("doctor", "--no-probe", "--json")
    assert json.loads(out)["findings"] and err == ""
    code, out, err = cli("run", "--all")
    assert (code, out) == (2, "") and "run this inside the book's checkout" in err
    for verb in ("status", "report"):
        code, out, err = cli(verb, "--json")
        assert (code, out) == (2, "") and "run this inside the book's checkout" in err
    assert os.listdir(tmp_path) == ["site"]
