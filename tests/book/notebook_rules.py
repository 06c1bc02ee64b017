"""What must hold for a lab's notebook file? Pure functions over its JSON."""

from __future__ import annotations

import json
import re
from typing import Any

SECTIONS = [
    "Setup", "Configuration", "Predict", "Baseline", "Check", "Measure", "Improve", "Compare",
    "Explain", "Break it", "Exercises",
]  # fmt: skip
CARD = ("Needs", "Takes", "Reads", "Writes")
MAX_CELL_LINES = 30
MAX_WIDTH = 88
MAX_OUTPUT_BYTES = 400_000
LEAST_COMPARED = 0.6
FORBIDDEN_TAGS = {"nbval-skip", "skip-execution", "remove-cell", "nbval-raises-exception"}
DANGEROUS = {
    r"^\s*[!%]": "a shell or magic line",
    r"\bsys\.path\b": "sys.path",
    r"\bpickle\b|\ballow_pickle\b": "pickle",
    r"\btrust_remote_code\b": "trust_remote_code",
    r"\bshell\s*=\s*True\b|\bos\.system\(|\bos\.popen\(": "a shell",
    r"\beval\(|\bexec\(": "eval or exec",
    r"\btorch\.load\(": "torch.load",
    r"\btime\.time\(": "time.time",
    r"\bNBVAL_(?:SKIP|IGNORE)|#\s*PYTEST_VALIDATE_IGNORE": "an nbval comment (use the tag)",
}
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:home|root|Users|tmp|work|mnt|opt|var)/[\w.-]+")


def source(cell: dict[str, Any]) -> str:
    """The cell's text, whichever of the two stored forms it has."""
    text = cell.get("source", "")
    return "".join(text) if isinstance(text, list) else text


def tags(cell: dict[str, Any]) -> set[str]:
    return set(cell.get("metadata", {}).get("tags", []))


def headings(notebook: dict[str, Any], level: int) -> list[str]:
    """Headings of `level` in text cells, fenced code left out."""
    mark = "#" * level + " "
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^```.*?^```", "", source(cell), flags=re.DOTALL | re.MULTILINE)
            found += [line[len(mark):].strip() for line in text.split("\n")
                      if line.startswith(mark)]  # fmt: skip
    return found


def check_sections(notebook: dict[str, Any]) -> list[str]:
    """Title card, then the sections of a lab in their order."""
    cells = notebook["cells"]
    if not cells or cells[0]["cell_type"] != "markdown":
        return ["the first cell must be the title card"]
    found = []
    card = source(cells[0])
    if not re.match(r"# Lab \d\d: \S", card):
        found.append("the first cell must begin with '# Lab NN: <verb phrase>'")
    found += [f"the title card lacks **{word}**" for word in CARD if f"**{word}" not in card]
    sections = headings(notebook, 2)
    if sections != SECTIONS:
        wrong = next((p for p in zip(sections, SECTIONS, strict=False) if p[0] != p[1]), None)
        detail = f"{wrong[0]!r} where {wrong[1]!r} belongs" if wrong else f"{len(sections)} of 11"
        found.append(f"sections: {detail}")
    return found


def check_cells(notebook: dict[str, Any]) -> list[str]:
    """Length, width, text before code, forbidden tags and calls."""
    found, cells, bare = [], notebook["cells"], []
    for number, cell in enumerate(cells):
        text = source(cell)
        where = f"cell {number}"
        found += [f"{where}: forbidden tag {tag}" for tag in sorted(tags(cell) & FORBIDDEN_TAGS)]
        if cell["cell_type"] != "code":
            continue
        lines = text.rstrip("\n").split("\n")
        if len(lines) > MAX_CELL_LINES:
            found.append(f"{where}: {len(lines)} lines, at most {MAX_CELL_LINES}")
        if any(len(line) > MAX_WIDTH for line in lines):
            found.append(f"{where}: a line is wider than {MAX_WIDTH}")
        found += [
            f"{where}: {what} is not allowed in a lab"
            for pattern, what in DANGEROUS.items()
            if re.search(pattern, text, re.MULTILINE)
        ]
        if not has_text_before(cells, number):
            bare.append(number)
    if len(bare) > 1:
        found.append(f"no text before code cells {bare} (one pair, in Setup, is fine)")
    return found


def has_text_before(cells: list[dict[str, Any]], number: int) -> bool:
    """Whether a text cell introduces code cell `number`, alone or together with the one before it.

    Two code cells may share their text where they must be two: one is compared by nbval and the
    other prints live values, or the second checks the answer given in the first.
    """
    kinds = [cell["cell_type"] for cell in cells[max(0, number - 2) : number]]
    if not kinds or kinds[-1] == "markdown":
        return bool(kinds)
    before, cell = cells[number - 1], cells[number]
    live = "nbval-ignore-output"
    is_split = (live in tags(before)) != (live in tags(cell))
    is_check = bool(re.search(r"\bcheck_\w+\(", source(cell)))
    return kinds[0] == "markdown" and (is_split or is_check)


def check_outputs(notebook: dict[str, Any]) -> list[str]:
    """Run once from top to bottom, no stored error, no machine path, most outputs compared."""
    found, expected, with_output, compared = [], 1, 0, 0
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code" or not source(cell).strip():
            continue
        where = f"cell {number}"
        if cell.get("execution_count") != expected:
            found.append(f"{where}: execution count {cell.get('execution_count')}, not {expected}")
        expected += 1
        outputs = cell.get("outputs", [])
        if outputs:
            with_output += 1
            compared += "nbval-ignore-output" not in tags(cell)
        if "raises-exception" not in tags(cell):
            if any(output["output_type"] == "error" for output in outputs):
                found.append(f"{where}: a stored error")
            if "Traceback (most recent call last)" in json.dumps(outputs):
                found.append(f"{where}: a stored traceback")
        stored = json.dumps(outputs)
        if len(stored) > MAX_OUTPUT_BYTES:
            found.append(f"{where}: {len(stored)} bytes of output, at most {MAX_OUTPUT_BYTES}")
        texts = " ".join(re.findall(r'"text(?:/plain|/html)?": (\[.*?\]|".*?")', stored))
        if match := MACHINE_PATH.search(texts + "\n" + source(cell)):
            found.append(f"{where}: a path of one machine, {match[0]}")
    if with_output and compared / with_output < LEAST_COMPARED:
        found.append(f"only {compared} of {with_output} cells with output are compared")
    return found


def compared_share(notebook: dict[str, Any]) -> tuple[int, int]:
    """(cells whose output nbval compares, cells with output)."""
    shown = [c for c in notebook["cells"] if c["cell_type"] == "code" and c.get("outputs")]
    return sum("nbval-ignore-output" not in tags(cell) for cell in shown), len(shown)


def check_exercises(notebook: dict[str, Any]) -> list[str]:
    """At least three exercises (third-level headings), each with a check_...() call after it."""
    found, names, inside, checked = [], [], False, set()
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            for line in text.split("\n"):
                if line.startswith("## "):
                    inside = line.strip() == "## Exercises"
                elif inside and line.startswith("### "):
                    names.append(line[4:].strip())
        elif inside and names and re.search(r"\bcheck_\w+\(", text):
            checked.add(names[-1])
    if len(names) < 3:
        found.append(f"{len(names)} exercises: at least 3, each under a third-level heading")
    found += [f"exercise {n!r} ends in no check_...() call" for n in names if n not in checked]
    return found


def check_metadata(notebook: dict[str, Any]) -> list[str]:
    """The kernel every reader has, and no trace of the author's machine."""
    spec = notebook.get("metadata", {}).get("kernelspec", {})
    found = [] if spec.get("name") == "python3" else ["kernelspec must be named python3"]
    if MACHINE_PATH.search(json.dumps(notebook.get("metadata", {}))):
        found.append("a path of one machine in the metadata")
    return found


def check_lab(notebook: dict[str, Any]) -> list[str]:
    """Every rule of a lab."""
    return (
        check_metadata(notebook)
        + check_sections(notebook)
        + check_cells(notebook)
        + check_outputs(notebook)
        + check_exercises(notebook)
    )
