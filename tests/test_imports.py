"""Imports run one way, and the algebra alone needs neither torch nor JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rllc

ROOT = Path(rllc.__file__).parent

# Each room, and the rooms it may import from at module level; `lab` may import from all.
ALGEBRA = {"checks", "propagator", "notation", "normal_form", "laws"}
ALLOWED = {
    "checks": set(),
    "propagator": {"checks"},
    "notation": {"propagator"},
    "normal_form": {"notation", "propagator"},
    "laws": {"checks", "notation", "propagator"},
    "reference": {"propagator"},
    "law": {"checks", "propagator"},
    "memory": {*ALGEBRA, "law"},
    "memoryless": {*ALGEBRA, "law"},
    "optax": {*ALGEBRA, "law", "memory"},
    "torch": {*ALGEBRA, "law", "memory"},
    "__init__": ALGEBRA,
}
# The rooms built on the lab, and those of them that each may import from. Commands may from all.
ON_THE_LAB = {"evidence": {"evidence"}, "memoryless": {"evidence", "memoryless"}}
COMMANDS = {"cli.py", "compare.py"}
FRAMEWORKS = {
    *("torch", "jax", "optax", "matplotlib", "datasets", "tyro", "rich", "sklearn", "pyarrow"),
    *("fsspec", "plotly", "pytorch_optimizer", "ray", "schedulefree", "numba", "triton"),
}
FRAMEWORKS_OF = {
    "optax": {"jax", "optax"},
    "torch": {"torch", "numba", "triton"},
    "memoryless": {"jax", "optax"},
}

FILES = sorted(ROOT.rglob("*.py"))


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_level(tree):
    """Import statements that run when the module is loaded: not those in functions or for type checkers."""
    for node in tree:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from module_level(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from module_level(ast.iter_child_nodes(node))


def imported(path):
    """Full names of what a file imports at module level."""
    for node in module_level(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        else:
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rooms_imported(path):
    """Rooms of rllc a file imports from; a name that is no room comes from __init__, that is the algebra."""
    names = [name.split(".")[1] for name in imported(path) if name.split(".")[0] == "rllc" and "." in name]
    rooms = {room(file) for file in FILES}
    return {name if name in rooms else "__init__" for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    here = room(path)
    if here != "lab":
        assert rooms_imported(path) <= ALLOWED[here] | {here} - {"__init__"}
        outside = {name.split(".")[0] for name in imported(path)}
        assert outside & FRAMEWORKS <= FRAMEWORKS_OF.get(here, set())


@pytest.mark.parametrize(
    "path", [f for f in FILES if room(f) == "lab"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_lab_does_without_what_is_built_on_it(path):
    here = path.relative_to(ROOT / "lab").parts[0]
    used = {name.split(".")[2] for name in imported(path) if name.startswith("rllc.lab.")} & set(ON_THE_LAB)
    assert here in COMMANDS or used <= ON_THE_LAB.get(here, set())


def test_the_reader_of_imports_reads():
    assert rooms_imported(ROOT / "normal_form.py") == {"notation", "propagator"}
    assert rooms_imported(ROOT / "__init__.py") == ALGEBRA - {"checks"}
    assert "propagator" in rooms_imported(ROOT / "torch" / "optimizer.py")


def test_importing_rllc_loads_no_framework():
    code = "import sys, rllc; rllc.M(0.9).normal_form(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & FRAMEWORKS
