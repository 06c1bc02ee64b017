"""A record goes stale when code changes, and only then."""

import json

import pytest
from record_examples import write_lab

import inferlab
from inferlab.errors import UserError
from inferlab.notebook import code_cells, code_hash


def test_only_code_counts(tmp_path):
    path = write_lab(tmp_path, "90_a", "x = 1\n", "", "y = 2")
    before = code_hash(path)
    notebook = json.loads(path.read_text())
    notebook["cells"].insert(0, {"cell_type": "markdown", "source": ["# Title"]})
    notebook["cells"][1]["outputs"] = [{"output_type": "stream", "text": "7"}]
    notebook["cells"][1]["source"] = "x = 1   \n\n"
    path.write_text(json.dumps(notebook))
    assert code_hash(path) == before == code_hash("90_a", tmp_path)
    assert code_cells(path) == ["x = 1   \n\n", "y = 2"]


def test_code_order_and_version_count(tmp_path, monkeypatch):
    hashes = {
        code_hash(write_lab(tmp_path, "90_a", "x = 1", "y = 2")),
        code_hash(write_lab(tmp_path, "90_b", "y = 2", "x = 1")),
        code_hash(write_lab(tmp_path, "90_c", "x = 1\ny = 2")),
    }
    monkeypatch.setattr(inferlab, "__version__", "99.0")
    hashes.add(code_hash("90_a", tmp_path))
    assert len(hashes) == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": 3}', "\x80", "[" * 100_000])
def test_what_is_no_notebook_is_one_clear_line(tmp_path, text):
    path = tmp_path / "90_a.ipynb"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="90_a.ipynb: not a Jupyter notebook"):
        code_hash(path)


def test_unknown_lab(tmp_path):
    with pytest.raises(UserError, match="no such lab"):
        code_hash("90_none", tmp_path)
