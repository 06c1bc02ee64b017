"""The scheduler that lab 41 writes in a cell plans the steps of the package's."""

import ast
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from inferlab.continuous.emulate import emulate, one_second_a_step
from inferlab.continuous.setting import Setting
from inferlab.lengths import Lengths

LAB = Path(__file__).parents[2] / "labs" / "41_continuous_batching.ipynb"


def functions_of_the_lab(*names):
    """The functions that the lab's cells define, and nothing else of them."""
    cells = json.loads(LAB.read_text(encoding="utf-8"))["cells"]
    found = {}
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        nodes = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
        exec(compile(ast.Module(nodes, []), LAB.name, "exec"), found)  # noqa: S102  our own lab
    return [found[name] for name in names]


PLAN_STEPS, STATIC, CONTINUOUS = functions_of_the_lab("plan_steps", "static", "continuous")
MANY = st.lists(st.builds(Lengths, st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=20)


@given(requests=MANY, num_rows=st.integers(1, 6))
def test_the_plain_scheduler_agrees_with_the_package(requests, num_rows):
    for policy, may_enter in (("static", STATIC), ("continuous", CONTINUOUS)):
        setting = Setting(policy, max_num_seqs=num_rows, store_tokens=4096, max_len=64)
        planned = emulate(requests, setting, one_second_a_step).steps
        expected = [(step.num_decodes, step.num_prompt_tokens) for step in planned]
        assert PLAN_STEPS(requests, num_rows, may_enter) == expected
