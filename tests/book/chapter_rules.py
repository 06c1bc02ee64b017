"""What must hold for the text of a chapter? Pure functions over MyST source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

HEADINGS = [
    "At a glance", "Overview", "Prerequisites", "Where the time goes", "Prediction", "The idea",
    "Correctness", "Measurement", "Prediction and measurement", "Where it stops helping",
    "Summary", "Exercises", "Further reading",
]  # fmt: skip
MINUTES = ("minutes_read", "minutes_run", "minutes_instructor")
LISTS = ("objectives", "keypoints")
MAX_CELL_LINES = 30

# Directives whose body is code, maths or somebody else's figures; all others hold prose.
NOT_PROSE = {
    "code-cell", "code", "code-block", "literalinclude", "math", "cited", "bibliography",
    "glue:figure", "glue:math", "toctree", "raw", "mermaid",
}  # fmt: skip
FENCE = re.compile(r"^\s*(`{3,}|~{3,}|:{3,})\s*(?:\{([\w:.-]+)\})?(.*)$")

NUMBER = r"(?<![\w.^_{/-])\d[\d,]*(?:\.\d+)?"
UNIT = (
    r"(?:×(?!\s*\d)|x\b(?!\s*\d)|times\s+(?:as|faster|slower|more|less|fewer)\b"
    r"|(?:[nµμum]?s|seconds?|milliseconds?|microseconds?)\b(?!/)"
    r"|tok(?:ens?)?\s*(?:/|per\s)\s*s(?:econd)?\b"
    r"|(?:[kKMGTP]i?)?B(?:ytes?)?/s\b|bytes/s\b|[kKMGTP]?FLOP(?:S\b|s?/s\b)"
    r"|(?:requests?|req)\s*/\s*s\b|QPS\b|J/tok(?:en)?\b|%|percent\b)"
)
PERFORMANCE_NUMBER = re.compile(rf"{NUMBER}(?:\s*(?:–|-|to)\s*\d[\d,.]*)?\s*{UNIT}")
INTERVAL = re.compile(r"\b\d\d\s*%\s+(?:bootstrap\s+|confidence\s+)*intervals?\b")


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a rule does not hold."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


def split_front_matter(text: str) -> tuple[dict, str]:
    """(front matter, body); the body keeps its line numbers."""
    match = re.match(r"\A---\n(.*?\n)---\n", text, re.DOTALL)
    if not match:
        return {}, text
    return yaml.safe_load(match[1]) or {}, "\n" * match[0].count("\n") + text[match.end() :]


def blank(text: str) -> str:
    """Spaces of the same shape, so that line numbers stay."""
    return re.sub(r"[^\n]", " ", text)


def prose(body: str) -> str:
    """The body with everything blanked that is not prose."""
    lines, stack, skipping = [], [], None
    for line in body.split("\n"):
        match = FENCE.match(line)
        if skipping:
            lines.append(line if re.match(r"\s*caption:", line) else "")
            if match and match[1].startswith(skipping) and not match[2] and not match[3].strip():
                skipping = None
            continue
        if match:
            fence, directive, rest = match[1], match[2], match[3]
            if not directive and not rest.strip() and stack and fence.startswith(stack[-1]):
                stack.pop()
            elif (directive and directive not in NOT_PROSE) or fence.startswith(":"):
                stack.append(fence)
                lines.append(rest)
                continue
            else:
                skipping = fence
            lines.append("")
            continue
        lines.append(line)
    text = "\n".join(lines)
    for pattern in (
        r"<!--.*?-->", r"^%.*$", r"\$\$.*?\$\$", r"(?<![\\$])\$[^$\n]+\$",
        r"\{[\w:.-]+\}(`+).*?\1", r"(`+)[^`].*?\1", r"\]\([^)]*\)", r"https?://\S+",
    ):  # fmt: skip
        text = re.sub(pattern, lambda m: blank(m[0]), text, flags=re.DOTALL | re.MULTILINE)
    return text


def headings(body: str) -> list[tuple[int, str]]:
    """(level, text) of the headings outside code."""
    found, skipping = [], None
    for line in body.split("\n"):
        match = FENCE.match(line)
        if match and skipping is None and not match[1].startswith(":"):
            skipping = match[1]
            continue
        if match and skipping and match[1].startswith(skipping) and not match[3].strip():
            skipping = None
            continue
        heading = re.match(r"(#{1,6})\s+(.+?)\s*#*$", line)
        if heading and skipping is None:
            found.append((len(heading[1]), heading[2]))
    return found


def bare_numbers(text: str) -> list[Finding]:
    """Performance numbers that were typed: in prose, table cells, captions and front matter."""
    front, body = split_front_matter(text)
    readable = INTERVAL.sub(lambda m: blank(m[0]), prose(body))
    findings = [
        Finding(readable.count("\n", 0, match.start()) + 1,
                f"bare performance number {match[0]!r}: write {{glue:text}}, or {{assumed}} for a "
                "definition or a hypothetical value")
        for match in PERFORMANCE_NUMBER.finditer(readable)
    ]  # fmt: skip
    for key in LISTS:
        for item in front.get(key) or []:
            if match := PERFORMANCE_NUMBER.search(INTERVAL.sub("", str(item))):
                findings.append(Finding(1, f"bare performance number {match[0]!r} in {key}"))
    return findings


def code_cells(body: str) -> list[tuple[str, str]]:
    """(options, code) of each {code-cell}; options are its YAML or `:key:` lines."""
    cells = []
    for match in re.finditer(
        r"^(`{3,})\{code-cell\}[^\n]*\n(.*?)^\1\s*$", body, re.DOTALL | re.MULTILINE
    ):
        inside = match[2]
        header = re.match(r"---\n.*?\n---\n|(?::[^\n]*\n)*", inside, re.DOTALL)
        options = header[0] if header else ""
        cells.append((options, inside[len(options) :].strip("\n")))
    return cells


def check_chapter(text: str) -> list[Finding]:
    """Every rule of a chapter's text."""
    front, body = split_front_matter(text)
    found = [
        Finding(1, f"front matter: {key} must be a whole number of minutes, at least 1")
        for key in MINUTES
        if not isinstance(front.get(key), int) or front[key] < 1
    ]
    found += [
        Finding(1, f"front matter: {key} must be a list of 3 to 6 lines")
        for key in LISTS
        if not isinstance(front.get(key), list) or not 3 <= len(front[key]) <= 6
    ]
    tops = headings(body)
    if [level for level, _ in tops].count(1) != 1 or not tops or tops[0][0] != 1:
        found.append(Finding(1, "exactly one first-level heading is needed, at the top"))
    seconds = [title for level, title in tops if level == 2]
    if seconds != HEADINGS:
        wrong = next((pair for pair in zip(seconds, HEADINGS, strict=False)
                      if pair[0] != pair[1]), None)  # fmt: skip
        detail = f"{wrong[0]!r} where {wrong[1]!r} belongs" if wrong else f"{len(seconds)} of 13"
        found.append(Finding(1, f"second-level headings: {detail}"))
    exercises = len(re.findall(r"\{exercise(?:-start)?\}", body))
    solutions = len(re.findall(r"\{solution(?:-start)?\}", body))
    if not 4 <= exercises <= 6 or solutions != exercises:
        found.append(Finding(1, f"{exercises} exercises and {solutions} solutions: 4 to 6 pairs"))
    for number, (options, code) in enumerate(code_cells(body), 1):
        if code.count("\n") + 1 > MAX_CELL_LINES:
            found.append(Finding(1, f"code cell {number} is longer than {MAX_CELL_LINES} lines"))
        if "figure:" in options and "alt:" not in options:
            found.append(Finding(1, f"code cell {number} draws a figure without alt text"))
    return found + bare_numbers(text)
