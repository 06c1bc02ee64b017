"""A module imports only from lower layers, or from modules to its left in its own layer.

Imports inside functions count too: they defer work, they do not change who knows whom.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "inferlab"

# A name is a module or a folder of inferlab. One that is missing here fails the first test.
LAYERS: list[tuple[str, ...]] = [
    ("errors", "units", "stats"),
    (
        "paths", "datafile", "trace", "metrics", "dialects", "hardware", "profiles", "workload",
        "lengths", "notebook", "records", "claims", "cited",
    ),
    ("timing", "kernels", "kvcache", "quant"),
    ("models",),
    ("roofline", "decoding", "serving", "quality", "compression"),
    ("client", "backends"),
    (
        "journal", "recorder", "calibration", "bench", "fitting", "cachecost", "cachebench",
        "kernelfit", "stepprofile", "filledcache", "quantcost", "quantbench", "quantquality",
        "precisioncost", "precisionbench", "precisionquality",
        "pagingcost", "pagingserver", "pagingbench", "pagingserved",
        "stepcost", "launchprobes", "ortlevels", "stepbench", "stepsizes",
        "compiletraps", "recompiles",
        "layoutcost", "layoutbench", "layoutroom", "layoutquality", "layouttables",
        "kernelcost", "kernelspeed", "kernelwatch", "kernelops", "kernelcompile", "kernelprobes",
        "kernelcheck", "kernelbench", "kerneltables",
        "batching",
        "server",
        "load",
        "omission", "synchronization", "latency_tables", "measure", "doctor", "runner", "execute",
        "report", "continuous", "underload", "exercises", "pages", "cli", "__main__",
    ),
]  # fmt: skip
# Figures know records and numbers, nothing that computes with tensors; only pages may use them.
SIDE = (
    "plot_style",
    "plots",
    "plot_latency",
    "plot_quant",
    "plot_precision",
    "plot_layouts",
    "plot_paging",
    "plot_batching",
    "plot_steps",
    "plot_kernels",
    "plot_continuous",
    "plot_underload",
)
SIDE_MAY_USE = {"errors", "units", "stats", "records", "cited"}
MAY_USE_SIDE = {"pages"}

ORDER = {name: (row, column) for row, names in enumerate(LAYERS)
         for column, name in enumerate(names)}  # fmt: skip
TENSOR_LIBRARIES = {"torch", "transformers", "triton", "onnxruntime"}
# Layer 1 and below, and these, must be importable without torch; probes time it on purpose.
WITHOUT_TORCH = {"models.config", "models.cost", "quant.formats", "serving.sequence",
                 "serving.scheduler", "roofline", "plots", "plot_style",
                 "plot_latency", "latency_tables", "omission",
                 "report", "pages", "journal", "runner", "exercises", "cachecost",
                 "quantcost", "precisioncost", "layoutcost", "layouttables",
                 "serving.batcher", "serving.waits", "batching.queueing", "batching.simulate",
                 "batching.cost", "batching.tables", "plot_batching",
                 "pagingcost", "stepcost", "kernelcost", "kernelspeed",
                 "server", "client", "load", "kerneltables",
                 "continuous.setting", "continuous.mixes", "continuous.law", "continuous.cost",
                 "continuous.emulate", "continuous.ladder", "continuous.tables",
                 "continuous.tails", "plot_continuous",
                 "underload.leash", "underload.servers", "underload.peers", "underload.peerreports",
                 "underload.comparison", "underload.honestpages", "underload.cost",
                 "underload.emulate", "underload.tables", "plot_underload"}  # fmt: skip
MAY_IMPORT_TORCH = {"hardware.probes"}


def modules() -> dict[str, ast.Module]:
    """Dotted name below inferlab -> syntax tree; the package itself is ''."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imported(tree: ast.AST, top_level_only: bool = False) -> set[str]:
    """Full names of what `tree` imports; `if TYPE_CHECKING` blocks are left out."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "relative import"
                names.add(child.module)
                if child.module == "inferlab":
                    names.update(f"inferlab.{alias.name}" for alias in child.names)
            visit(child)

    visit(tree)
    return names


def unit(name: str) -> str:
    """`inferlab.records.store` -> `records`; the package itself -> ''."""
    return name.removeprefix("inferlab").lstrip(".").partition(".")[0]


def units_used(name: str) -> set[str]:
    """Units of inferlab that a module imports, itself and the bare package left out."""
    used = {unit(n) for n in imported(MODULES[name]) if n.partition(".")[0] == "inferlab"}
    known = set(ORDER) | set(SIDE)
    return {u for u in used if u in known} - {unit(f"inferlab.{name}")}


def allowed(user: str, used: str) -> bool:
    """Whether unit `user` may import unit `used`."""
    if user in SIDE:
        return used in SIDE_MAY_USE or (used in SIDE and SIDE.index(used) < SIDE.index(user))
    if used in SIDE:
        return user in MAY_USE_SIDE
    return ORDER[used] < ORDER[user]


def test_every_module_has_a_layer():
    units = {unit(f"inferlab.{name}") for name in MODULES} - {""}
    assert units <= set(ORDER) | set(SIDE), units - set(ORDER) - set(SIDE)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downwards(name):
    wrong = sorted(used for used in units_used(name) if not allowed(unit(f"inferlab.{name}"), used))
    assert not wrong, f"inferlab.{name} imports {wrong}"


@pytest.mark.parametrize("name", MODULES)
def test_light_modules_do_not_import_torch(name):
    own = unit(f"inferlab.{name}")
    light = name in WITHOUT_TORCH or own in WITHOUT_TORCH or own in ("", "cli", "__main__")
    light = light or (own in ORDER and ORDER[own][0] <= 1)
    if light and name not in MAY_IMPORT_TORCH:
        heavy = {n.partition(".")[0] for n in imported(MODULES[name], top_level_only=True)}
        assert not heavy & TENSOR_LIBRARIES, f"inferlab.{name} imports {heavy & TENSOR_LIBRARIES}"


def test_nothing_imports_tests_labs_or_chapters():
    for name, tree in MODULES.items():
        roots = {n.partition(".")[0] for n in imported(tree)}
        assert not roots & {"tests", "labs", "chapters", "scripts"}, name


def test_the_rules_catch_an_upward_import():
    assert not allowed("records", "roofline")
    assert not allowed("units", "stats")
    assert not allowed("plots", "models")
    assert not allowed("bench", "plots")
    assert allowed("roofline", "models")
    assert allowed("claims", "records")


@pytest.mark.parametrize(
    "module",
    [
        "inferlab", "inferlab.cli.app", "inferlab.records", "inferlab.claims", "inferlab.metrics",
        "inferlab.dialects", "inferlab.profiles", "inferlab.hardware", "inferlab.models.cost",
        "inferlab.roofline", "inferlab.pages", "inferlab.plots",
    ],
)  # fmt: skip
def test_importing_does_no_heavy_work(module):
    code = (
        f"import sys, {module}; "
        "heavy = {'torch', 'transformers'} & set(sys.modules); "
        "threads = __import__('threading').active_count(); "
        "print(sorted(heavy), threads)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert answer.stdout.strip() == "[] 1", answer.stdout
