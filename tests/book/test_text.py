"""Chapters and pages keep the rules of their text, and the rules catch what they should."""

from __future__ import annotations

import re

import pytest
from chapter_rules import HEADINGS, bare_numbers, check_chapter, headings, split_front_matter
from toc import CHAPTERS, LABS, ROOT, source_of, toc_files

PROSE_PAGES = [name for name in toc_files() if not name.startswith("labs/")]


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_keeps_the_rules(name):
    found = check_chapter(source_of(name).read_text(encoding="utf-8"))
    assert not found, f"{name}: " + "; ".join(map(str, found))


@pytest.mark.parametrize("name", PROSE_PAGES)
def test_no_bare_performance_number_in_prose(name):
    found = bare_numbers(source_of(name).read_text(encoding="utf-8"))
    assert not found, f"{name}: " + "; ".join(map(str, found))


def test_every_chapter_has_its_lab_and_every_lab_its_chapter():
    assert [c.removeprefix("chapters/") for c in CHAPTERS] == [
        lab.removeprefix("labs/") for lab in LABS
    ]


def test_every_chapter_file_is_in_the_table_of_contents():
    stems = {p.stem for p in ROOT.glob("chapters/[0-9][0-9]_*.md")}
    assert stems == {name.removeprefix("chapters/") for name in CHAPTERS}


@pytest.mark.parametrize(
    "sentence",
    [
        "It is 1.8× faster.", "It is 1.8x faster.", "A step takes 23 ms here.",
        "After 3 s it ends.", "We saw 45 tok/s.", "About 45 tokens per second.",
        "It reads 12 GB/s.",
        "Between 2 and 40 %.",
        "It runs at 5 TFLOP/s.",
        "| cost | 12 µs |",
        "2-3x",
        "Use 4 times as many.",
        ":::{note}\nIt takes 7 ms.\n:::",
        "````{admonition} Takeaway\nIt takes 7 ms.\n````",
        "```{exercise}\nA step of 7 ms.\n```",
        "```{code-cell}\n---\nmystnb:\n  figure:\n    caption: It is 3× faster\n---\n1\n```",
        "---\nkeypoints: [It is 3× faster]\n---\n# T\n",
    ],
)  # fmt: skip
def test_the_number_lint_refuses(sentence):
    assert bare_numbers(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "It is {glue:text}`speedup` faster.", "`sleep 3 s`", "$t = 3$ ms is not prose",
        "<!-- 3 ms -->",
        "Assume {assumed}`23 ms` a step.", "the median with a 95 % bootstrap interval",
        "95 % confidence interval", "```python\nx = '3 ms'\n```", "a shape of 1823 × 781",
        "```{cited}\n2.7x at batch 1\n```", "```{math}\nx = 3 s\n```", "in 2023 she wrote",
        "batch sizes 1, 2 and 4", "2 requests", "SmolLM2-135M", "the 99th percentile",
        "```{code-cell} ipython3\n:tags: [hide-input]\nprint('3 ms')\n```", "chapter 20 says so",
        "[text](https://example.org/3x)", "int4 and 2:4 sparsity", "block 16 is the default size",
    ],
)  # fmt: skip
def test_the_number_lint_lets_pass(sentence):
    assert not bare_numbers(sentence)


def template() -> str:
    return (
        (ROOT / "chapters" / "_template.md")
        .read_text(encoding="utf-8")
        .replace("{{NN_slug}}", "31_tree_decoding")
    )


def test_the_template_has_the_headings_in_order():
    _, body = split_front_matter(template())
    assert [title for level, title in headings(body) if level == 2] == HEADINGS


def test_the_template_keeps_the_rules():
    assert not check_chapter(template())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.replace("## Correctness\n", ""), "second-level headings"),
        (lambda t: t.replace("## Prediction\n", "## Forecast\n"), "'Forecast'"),
        (lambda t: re.sub(r"minutes_read: \d+", "minutes_read: soon", t), "minutes_read"),
        (lambda t: re.sub(r"^objectives:(\n  - .*)+", "objectives: []", t, flags=re.M),
         "objectives"),
        (lambda t: t.replace("{exercise}", "{note}", 3), "exercises"),
        (lambda t: t + "\n```{code-cell}\n" + "x = 1\n" * 31 + "```\n", "longer than 30"),
        (lambda t: t + "\n# Another title\n", "first-level"),
    ],
)  # fmt: skip
def test_a_spoiled_chapter_is_refused(spoil, says):
    assert any(says in str(found) for found in check_chapter(spoil(template())))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_front_door_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (ROOT / link).exists()]
    commands = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert commands <= targets, commands - targets
