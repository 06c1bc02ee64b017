"""Write labs/_template.ipynb: every section of a lab, with its tags set.

Kept as code so that a change of the skeleton is a readable diff:
`python scripts/make_lab_template.py`.
"""

# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TARGET = Path(__file__).resolve().parent.parent / "labs" / "_template.ipynb"
LIVE = ["nbval-ignore-output"]  # prints live times or the machine
GPU = ["gpu"]  # does more on CUDA; falls back to stored records elsewhere

CELLS: list[tuple[str, list[str]] | str] = [
    "# Lab {{NN}}: <verb phrase>\n\n**Needs** a CPU; more cases run on a CUDA device.  \n"
    "**Takes** a few minutes.  \n**Reads** the published records of this lab.  \n"
    "**Writes** nothing, unless `inferlab run {{NN_slug}}` executes it.",
    "## Setup\n\nThe imports, then the machine and the records that we compare with.",
    ("from dataclasses import dataclass\n\nfrom inferlab.hardware import describe_machine\n"
     "from inferlab.profiles import current_profile\nfrom inferlab.recorder import Case, Recorder\n"
     "from inferlab.records import find_records", []),
    ("PROFILE = current_profile()\nprint(describe_machine(PROFILE.device).title)", LIVE),
    "## Configuration\n\nEvery knob of this lab, with its unit in its name.",
    ("@dataclass(frozen=True, slots=True)\nclass Config:\n"
     "    batch_sizes: tuple[int, ...] = PROFILE.batch_sizes\n"
     "    output_len: int = PROFILE.output_len\n\n\nCONFIG = Config()\n"
     "recorder = Recorder(\"{{NN_slug}}\", CONFIG, PROFILE)", []),
    "## Predict\n\nBytes and FLOPs give a floor. We write the number down before we measure.",
    ("predicted = {}\nprint(predicted)", []),
    "## Baseline\n\nThe naive version, written out.",
    ("def baseline() -> int:\n    return 0", []),
    "## Check\n\nThe outputs agree with the reference on a shape that is not a power of two.",
    ("same = baseline() == 0\nrecorder.check(\"token equality\", same)\nprint(\"equal:\", same)", []),
    "## Measure\n\nBaseline and variant take turns, so that drift of the machine cancels.",
    ("cases = {\"baseline\": Case(lambda: {\"step_s\": 1.0}, {\"variant\": \"baseline\"})}\n"
     "record = recorder.measure(\"main\", cases)\nprint(record.table(\"step_s\"))", LIVE),
    "## Improve\n\nOne change for each step, each with its own check and measurement.\n\n"
    "### Step 1\n\nWhat changes and what we expect of it.",
    ("def variant() -> int:\n    return 0  # changed: why\n\n\n"
     "print(\"equal:\", variant() == baseline())", []),
    "## Compare\n\nThis machine beside the published devices, the prediction drawn as a line.",
    ("published = find_records(\"{{NN_slug}}\")\nprint(len(published), \"published records\")", LIVE),
    "## Explain\n\nCounters, a profile or arithmetic for the gap between prediction and measurement.",
    ("print(\"bytes that a step must move:\", 0)", []),
    "## Break it\n\nThe regime in which the technique loses. More of it shows on a GPU.",
    ("print(\"loses:\", True)", GPU),
    "## Exercises\n\nEach ends in a check that says what differs.\n\n### 1. Recall\n\nThe question.",
    ("def check_recall(answer: str) -> str:\n"
     "    return \"right\" if answer == \"bytes\" else \"look at Predict again\"\n\n\n"
     "print(check_recall(\"bytes\"))", ["exercise"]),
    "### 2. Estimate\n\nThe question.",
    ("def check_estimate(answer: int) -> str:\n"
     "    return \"right\" if answer == 2 else f\"off by {answer - 2}\"\n\n\n"
     "print(check_estimate(2))", ["exercise"]),
    "### 3. Change\n\nThe question.",
    ("def check_change(answer: bool) -> str:\n"
     "    return \"right\" if answer else \"the outputs differ\"\n\n\n"
     "print(check_change(True))", ["exercise"]),
    "The record is complete: `inferlab run` writes it here, a reader's notebook keeps it in memory.",
    ("record = recorder.finish()\nprint(record.manifest.status)", []),
]  # fmt: skip


def main() -> None:
    cells = []
    for number, item in enumerate(CELLS):
        if isinstance(item, str):
            cell = new_markdown_cell(item)
        else:
            cell = new_code_cell(item[0], metadata={"tags": item[1]} if item[1] else {})
        cell["id"] = f"cell-{number:02d}"
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), TARGET)


if __name__ == "__main__":
    main()
