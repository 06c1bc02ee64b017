"""What no file of this book may hold, and how long a module may be."""

from __future__ import annotations

import re
import subprocess
import warnings

import pytest
from toc import ROOT

TARGET_LINES, MAX_LINES = 300, 330
DANGEROUS = {
    "pickle": re.compile(r"^\s*(?:import|from)\s+(?:pickle|dill|joblib|cloudpickle)\b"
                         r"|\ballow_pickle\s*=\s*True", re.MULTILINE),
    "remote code": re.compile(r"\btrust_remote_code\s*=\s*True"),
    "torch.load": re.compile(r"\btorch\.load\((?![^)]*weights_only\s*=\s*True)"),
    "a shell": re.compile(r"\bshell\s*=\s*True|\bos\.system\("),
    "eval": re.compile(r"(?<![\w.])(?:eval|exec)\("),
}  # fmt: skip


# The one place that runs a lab's cells in a process of its own.
ALLOWED = {("eval", "inferlab/execute.py")}


def tracked(*suffixes: str) -> list:
    """Files that git tracks or would track, by suffix; all files of a checkout without git."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        skip = {".venv", ".peers", "_build", ".make", ".wheelhouse", "build"}
        found = [p for p in ROOT.rglob("*") if p.is_file()
                 and not skip & set(p.relative_to(ROOT).parts)]  # fmt: skip
    else:
        found = [ROOT / line for line in listed.stdout.splitlines()]
    return sorted(p for p in found if p.suffix in suffixes and p.exists())


PYTHON = tracked(".py")


@pytest.mark.parametrize("what", DANGEROUS)
def test_no_dangerous_call(what):
    places = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        for path in PYTHON
        if "tests/book" not in str(path)
        and (what, path.relative_to(ROOT).as_posix()) not in ALLOWED
        for text in [path.read_text(encoding="utf-8")]
        for match in DANGEROUS[what].finditer(text)
    ]
    assert not places, f"{what} in {', '.join(places)}"


def test_modules_stay_short():
    for path in PYTHON:
        lines = path.read_text(encoding="utf-8").count("\n")
        name = path.relative_to(ROOT)
        if lines > TARGET_LINES:
            warnings.warn(f"{name} has {lines} lines, the aim is {TARGET_LINES}", stacklevel=1)
        assert lines <= MAX_LINES, f"{name} has {lines} lines, at most {MAX_LINES}"


def test_every_package_module_says_what_it_answers():
    for path in PYTHON:
        if path.is_relative_to(ROOT / "inferlab"):
            first = path.read_text(encoding="utf-8").lstrip()[:3]
            assert first == '"""', f"{path.relative_to(ROOT)} has no docstring"


def test_no_cdn_is_named_in_what_the_pages_load():
    for path in tracked(".css", ".js", ".html"):
        if path.is_relative_to(ROOT / "_assets") or path.is_relative_to(ROOT / "_templates"):
            assert not re.search(
                r"(?:https?:)?//[\w.-]+\.\w+/", path.read_text(encoding="utf-8")
            ), f"{path.relative_to(ROOT)} names an address"
