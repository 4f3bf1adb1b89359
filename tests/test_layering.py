"""The house rules that a reader relies on: imports go down only, and small files stay small."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "robustjax"
FLOORS = (
    "errors",
    "runtime",
    "data",
    "models",
    "attacks",
    "evaluation",
    "training",
    "planning",
    "settings",
    "stage_work",
    "given_model",
    "study_work",
    "study_costs",
    "study_plan",
    "study_forecast",
    "study",
    "commands",
    "command_flags",
    "cli",
    "__main__",
)
ANALYSIS_MAY_USE = (
    "errors",
    "analysis",
    "evaluation.detection",
    "evaluation.records",
    "evaluation.metrics",
    "evaluation.pretraining",
)
ABOVE_ANALYSIS = (
    "stage_work",
    "study_work",
    "study_costs",
    "study_plan",
    "study_forecast",
    "study",
    "commands",
    "cli",
    "__main__",
)
JAX_FREE = ("data", *ANALYSIS_MAY_USE)
MAX_LINES = 500


def module_name(path: Path) -> str:
    """`robustjax/data/tokens.py` -> `data.tokens`; the package itself is the empty string."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports_of(path: Path, *, at_import_time: bool) -> Iterator[str]:
    """Modules of ours that a file imports; functions' own imports too unless `at_import_time`."""
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from robustjax.data import tokens` names a module; `from x import y` may not.
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [
                name if name.removeprefix("robustjax.") in modules() else node.module or ""
                for name in candidates
            ]
        else:
            found = []
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if not (is_function and at_import_time):
                nodes.extend(ast.iter_child_nodes(node))
        for name in found:
            if is_inside(name, "robustjax"):
                yield name.removeprefix("robustjax").removeprefix(".")


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_imports_go_down_only(module):
    floor = module.split(".")[0]
    assert floor in (*FLOORS, "analysis"), f"give {floor} a place in FLOORS"
    for imported in imports_of(modules()[module], at_import_time=False):
        target = imported.split(".")[0]
        assert target, f"{module} imports the package robustjax itself: name the module"
        if floor == "analysis":
            assert any(is_inside(imported, name) for name in ANALYSIS_MAY_USE), imported
        elif target == "analysis":
            assert floor in ABOVE_ANALYSIS, f"{module} imports {imported}"
        else:
            assert FLOORS.index(target) <= FLOORS.index(floor), f"{module} imports {imported}"


def test_no_import_cycle():
    graph = {
        name: set(imports_of(path, at_import_time=True)) - {name}
        for name, path in modules().items()
        if name
    }
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert not graph, f"modules in or above a cycle: {sorted(graph)}"


def test_records_and_analysis_work_where_jax_cannot_be_imported():
    names = [name for name in modules() if any(is_inside(name, free) for free in JAX_FREE)]
    blocked = ("jax", "jaxlib", "flax", "optax", "orbax", "transformers", "torch")
    program = (
        "import sys, importlib\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"for name in {names!r}: importlib.import_module('robustjax.' + name)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_a_study_begins_without_what_only_its_report_needs():
    program = "import sys, robustjax.study; print({'matplotlib', 'scipy.stats'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_launching_needs_neither_jax_nor_the_package():
    """It runs on a laptop that has Python and nothing else; a sweep loads what its config loads."""
    found = sorted((ROOT / "launch").glob("*.py"))
    assert len(found) > 5
    for path in found:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imported = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        outside = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"launch"}
        assert not outside, f"{path} imports {outside}"
        assert len(path.read_text().splitlines()) <= MAX_LINES, f"{path}: split it"


def test_modules_are_small_and_have_names_that_say_something():
    for name, path in modules().items():
        assert len(path.read_text().splitlines()) <= MAX_LINES, f"{path}: split it"
        assert not {"utils", "util", "helpers", "misc"} & set(name.split(".")), path


def test_arrays_go_to_the_devices_and_back_through_one_door():
    """Elsewhere a process would wait for others, or ask for rows that are not its own."""
    doors = {
        name
        for name, path in modules().items()
        if re.search(r"device_(put|get)\(", path.read_text())
    }
    assert doors == {"runtime.rows"}
