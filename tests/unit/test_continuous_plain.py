"""The scheduler that lab 41 writes in a cell plans the steps of the package's."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.continuous.emulate import emulate, one_second_a_step
from inferlab.continuous.setting import Setting
from inferlab.lengths import Lengths

NAMES = ("plan_steps", "static", "continuous")
LAB = Path(__file__).parents[2] / "labs" / "41_continuous_batching.ipynb"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A module with the functions that the lab's cells define, and nothing else of them."""
    cells = json.loads(LAB.read_text(encoding="utf-8"))["cells"]
    trees = [ast.parse("".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    nodes = [n for tree in trees for n in tree.body
             if isinstance(n, ast.FunctionDef) and n.name in NAMES]  # fmt: skip
    path = tmp_path_factory.mktemp("lab") / "plain_scheduler.py"
    path.write_text(ast.unparse(ast.Module(nodes, [])), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MANY = st.lists(st.builds(Lengths, st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=20)


@given(requests=MANY, num_rows=st.integers(1, 6))
def test_the_plain_scheduler_agrees_with_the_package(lab, requests, num_rows):
    for policy, may_enter in (("static", lab.static), ("continuous", lab.continuous)):
        setting = Setting(policy, max_num_seqs=num_rows, store_tokens=4096, max_len=64)
        planned = emulate(requests, setting, one_second_a_step).steps
        expected = [(step.num_decodes, step.num_prompt_tokens) for step in planned]
        assert lab.plan_steps(requests, num_rows, may_enter) == expected
