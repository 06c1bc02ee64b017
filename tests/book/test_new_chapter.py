"""`make new-chapter` gives a chapter and a lab that keep the rules, and never overwrites."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from chapter_rules import check_chapter
from notebook_rules import SECTIONS, check_cells, check_exercises, check_sections, headings
from toc import ROOT, toc_files


@pytest.fixture
def book(tmp_path):
    """A copy of what the script needs."""
    for folder in ("chapters", "labs"):
        (tmp_path / folder).mkdir()
    for name in ("_toc.yml", "chapters/_template.md", "labs/_template.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def new_chapter(slug, root):
    command = [sys.executable, str(ROOT / "scripts" / "new_chapter.py"), slug, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_new_chapter_keeps_the_rules(book):
    assert new_chapter("31_tree_decoding", book).returncode == 0
    text = (book / "chapters" / "31_tree_decoding.md").read_text()
    assert "# Tree decoding" in text
    assert "{{" not in text
    assert not check_chapter(text)
    lab = json.loads((book / "labs" / "31_tree_decoding.ipynb").read_text())
    assert headings(lab, 2) == SECTIONS
    assert not check_sections(lab) + check_cells(lab) + check_exercises(lab)


def test_parts_and_chapters_stay_in_order(book):
    before = toc_files(book)
    for slug in ("31_tree_decoding", "03_where_time_goes", "23_kv_quantization", "30_speculative"):
        assert new_chapter(slug, book).returncode == 0
    names = toc_files(book)
    numbers = [name[9:11] for name in names if name.startswith("chapters/")]
    assert numbers == sorted(numbers)
    assert {"03", "23", "30", "31"} <= set(numbers)
    assert [n for n in names if n in before] == before
    captions = [line for line in (book / "_toc.yml").read_text().split("\n") if "caption:" in line]
    assert captions[-1].endswith("Reference")
    assert any("3x" in caption for caption in captions)


@pytest.mark.parametrize("slug", ["tree", "31-tree", "71_tree", "31_Tree", "../31_tree", "31_"])
def test_a_bad_slug_is_one_clear_line(book, slug):
    answer = new_chapter(slug, book)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "is no slug" in answer.stderr


def test_nothing_is_overwritten(book):
    (book / "labs" / "31_tree_decoding.ipynb").write_text("mine")
    toc = (book / "_toc.yml").read_text()
    answer = new_chapter("31_tree_decoding", book)
    assert answer.returncode == 2
    assert "not overwritten" in answer.stderr
    assert (book / "labs" / "31_tree_decoding.ipynb").read_text() == "mine"
    assert (book / "_toc.yml").read_text() == toc
    assert not (book / "chapters" / "31_tree_decoding.md").exists()


def test_a_taken_number_is_refused(book):
    answer = new_chapter("20_other", book)
    assert answer.returncode == 2
    assert "20_kv_cache" in answer.stderr
