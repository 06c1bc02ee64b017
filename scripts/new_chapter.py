"""Make a chapter and its lab from the templates and put them into _toc.yml.

`python scripts/new_chapter.py 31_tree_decoding [--root DIR]`
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PARTS = {
    "0": "0x · Measure",
    "1": "1x · The model",
    "2": "2x · Attention and memory",
    "3": "3x · Decoding",
    "4": "4x · Serving",
    "5": "5x · Systems",
    "6": "6x · Capstone",
}
LAST_PART = "Reference"


class ChapterError(Exception):
    """One line that says what is wrong and what to do."""


def entry(slug: str, title: str) -> list[str]:
    """The lines of _toc.yml for one chapter."""
    number = slug[:2]
    return [
        f"      - file: chapters/{slug}",
        f'        title: "{number} · {title}"',
        "        sections:",
        f"          - file: labs/{slug}",
        f'            title: "Lab {number}"',
    ]


def insert_into_toc(toc: str, slug: str, title: str) -> str:
    """`toc` with the chapter in its part, chapters and parts in the order of their numbers."""
    caption = PARTS[slug[0]]
    lines = toc.rstrip("\n").split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith("  - caption: ")]
    captions = [lines[i].removeprefix("  - caption: ").strip() for i in starts]
    bounds = dict(zip(captions, zip(starts, [*starts[1:], len(lines)], strict=True), strict=True))
    if caption in bounds:
        first, end = bounds[caption]
        at = end
        for index in range(first, end):
            match = re.match(r"      - file: chapters/(\d\d)", lines[index])
            if match and match[1] > slug[:2]:
                at = index
                break
        new = entry(slug, title)
    else:
        after = [c for c in captions if c == LAST_PART or c > caption]
        at = bounds[after[0]][0] if after else len(lines)
        new = [f"  - caption: {caption}", "    chapters:", *entry(slug, title)]
    return "\n".join(lines[:at] + new + lines[at:]) + "\n"


def make_chapter(slug: str, root: Path) -> list[Path]:
    """Write chapter and lab; refuses a bad slug, a taken number and existing files."""
    if not re.fullmatch(r"[0-6]\d_[a-z][a-z0-9]*(_[a-z0-9]+)*", slug):
        raise ChapterError(
            f"{slug!r} is no slug: two digits (the first 0 to 6 is the part), an underscore and "
            "a name in lower case, for example 31_tree_decoding"
        )
    targets = {
        root / "chapters" / f"{slug}.md": root / "chapters" / "_template.md",
        root / "labs" / f"{slug}.ipynb": root / "labs" / "_template.ipynb",
    }
    toc_path = root / "_toc.yml"
    toc = toc_path.read_text(encoding="utf-8")
    if taken := re.search(rf"chapters/({slug[:2]}_\w+)", toc):
        raise ChapterError(f"number {slug[:2]} is taken by {taken[1]}: choose another")
    for target in targets:
        if target.exists():
            raise ChapterError(f"{target.relative_to(root)} exists and is not overwritten")
    title = slug[3:].replace("_", " ").capitalize()
    for target, template in targets.items():
        text = template.read_text(encoding="utf-8")
        for key, value in (("{{NN_slug}}", slug), ("{{NN}}", slug[:2]), ("{{Title}}", title)):
            text = text.replace(key, value)
        target.write_text(text, encoding="utf-8")
    toc_path.write_text(insert_into_toc(toc, slug, title), encoding="utf-8")
    return list(targets)


def main() -> int:
    arguments = [a for a in sys.argv[1:] if a != "--root"]
    root = Path(__file__).resolve().parent.parent
    if "--root" in sys.argv:
        root = Path(arguments.pop()).resolve()
    if len(arguments) != 1:
        print("error: name one chapter: new_chapter.py 31_tree_decoding", file=sys.stderr)
        return 2
    try:
        made = make_chapter(arguments[0], root)
    except ChapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in made:
        print(f"made {path.relative_to(root)}")
    print("added to _toc.yml; CONTRIBUTING.md says what comes next")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
