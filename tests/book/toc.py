"""Which pages does the book have? Read from _toc.yml."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"


def toc_files(root: Path = ROOT) -> list[str]:
    """Document names in reading order, the root first."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))

    def walk(node) -> list[str]:
        if isinstance(node, list):
            return [name for item in node for name in walk(item)]
        names = [node["file"]] if "file" in node else []
        for key in ("parts", "chapters", "sections"):
            names += walk(node.get(key, []))
        return names

    return [toc["root"], *walk(toc)]


def source_of(name: str, root: Path = ROOT) -> Path:
    """The file of a document name."""
    for suffix in (".md", ".ipynb"):
        if (root / (name + suffix)).exists():
            return root / (name + suffix)
    return root / (name + ".md")


CHAPTERS = [name for name in toc_files() if name.startswith("chapters/")]
LABS = [name for name in toc_files() if name.startswith("labs/")]
