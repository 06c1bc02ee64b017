"""Labs keep the rules of their notebook files, and the rules catch what they should."""

from __future__ import annotations

import copy
import json

import pytest
from nbformat.v4 import new_output
from notebook_rules import check_lab, compared_share
from toc import LABS, ROOT, source_of


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LABS)
def test_lab_keeps_the_rules(name):
    notebook = read(source_of(name))
    found = check_lab(notebook)
    compared, shown = compared_share(notebook)
    print(f"{name}: {compared} of {shown} cells with output are compared")
    assert not found, f"{name}: " + "; ".join(found)


def run_template() -> dict:
    """The template as if it had been run."""
    text = (ROOT / "labs" / "_template.ipynb").read_text(encoding="utf-8")
    notebook = json.loads(text.replace("{{NN_slug}}", "31_tree").replace("{{NN}}", "31"))
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
            cell["outputs"] = [new_output("stream", name="stdout", text="1\n")]
    return notebook


def code(notebook, number=3):
    return [c for c in notebook["cells"] if c["cell_type"] == "code"][number]


def set_source(text):
    return lambda nb: code(nb).update(source=text)


def set_tag(tag):
    return lambda nb: code(nb)["metadata"].update(tags=[tag])


def set_output(output):
    return lambda nb: code(nb).update(outputs=[output])


def drop_section(nb):
    nb["cells"] = [c for c in nb["cells"] if "## Break it" not in "".join(c["source"])]


def ignore_all(nb):
    for cell in nb["cells"]:
        cell["metadata"]["tags"] = ["nbval-ignore-output"]


def test_the_template_once_run_keeps_the_rules():
    assert check_lab(run_template()) == []


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (set_source("!ls"), "shell or magic"),
        (set_source("%timeit f()"), "shell or magic"),
        (set_source("import sys\nsys.path.append('x')"), "sys.path"),
        (set_source("import pickle"), "pickle"),
        (set_source("load(trust_remote_code=True)"), "trust_remote_code"),
        (set_source("run('ls', shell=True)"), "a shell"),
        (set_source("eval('1')"), "eval"),
        (set_source("torch.load('w.pt')"), "torch.load"),
        (set_source("x = 1\n" * 31), "31 lines"),
        (set_source("x = '" + "a" * 90 + "'"), "wider"),
        (set_source("open('/home/ada/x')"), "path of one machine"),
        (set_tag("nbval-skip"), "forbidden tag"),
        (set_tag("skip-execution"), "forbidden tag"),
        (set_tag("remove-cell"), "forbidden tag"),
        (lambda nb: code(nb).update(execution_count=None), "execution count"),
        (lambda nb: code(nb).update(execution_count=99), "execution count"),
        (set_output(new_output("error", ename="E", evalue="v", traceback=["t"])), "stored error"),
        (set_output(new_output("stream", text="Traceback (most recent call last):")), "traceback"),
        (set_output(new_output("stream", text="/root/.cache/model")), "path of one machine"),
        (set_output(new_output("stream", text="a" * 500_000)), "bytes of output"),
        (drop_section, "'Exercises' where 'Break it' belongs"),
        (ignore_all, "are compared"),
        (lambda nb: nb["cells"][0].update(source="# Something"), "first cell must begin"),
        (lambda nb: nb["metadata"]["kernelspec"].update(name="mine"), "kernelspec"),
        (lambda nb: code(nb, -2).update(source="print(1)"), "check_"),
        (lambda nb: nb["cells"].insert(2, copy.deepcopy(code(nb, 0))), "no text before"),
    ],
)
def test_a_spoiled_lab_is_refused(spoil, says):
    notebook = run_template()
    spoil(notebook)
    assert any(says in line for line in check_lab(notebook)), check_lab(notebook)
