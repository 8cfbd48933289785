"""The rooms of the house: imports run downward, each function is small enough to call, and one door leads in."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tcar.__main__ import VERBS

PACKAGE = Path(__file__).parents[1] / "tcar"
# From the ground up: a room uses those before it, and none after it.
ROOMS = (
    "ground", "evaluate", "data", "fusion", "streams", "models", "features", "train", "tabletop", "viewer", "explain",
    "serve", "lab",
)  # fmt: skip
MODULES = {
    ".".join(("tcar", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MOST_PARAMETERS, MOST_LOOPS = 7, 3


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of tcar that one names in its imports, wherever in it they stand."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are written out, so that they can be read"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in full}
    return frozenset(name for name in found if name in MODULES and name not in (module, "tcar"))


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", [name for name in MODULES if name.count(".")])
def test_imports_run_downward(module):
    if module == "tcar.__main__":
        assert {room(name) for name in imported(module)} == {"ground"}
        return
    above = ROOMS[ROOMS.index(room(module)) + 1 :]
    up = sorted(name for name in imported(module) if room(name) in above or name == "tcar.__main__")
    assert not up, f"{module} imports {up}"


def test_every_folder_is_a_room():
    assert {room(name) for name in MODULES if name.count(".")} == {*ROOMS, "__main__"}


def test_no_circle():
    """A module can be understood, and loaded, after those that it imports."""
    left = {name: set(imported(name)) for name in MODULES}
    while free := {name for name, needs in left.items() if not needs & left.keys() - {name}}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, {name: sorted(needs & left.keys()) for name, needs in left.items()}


@pytest.mark.parametrize("module", MODULES)
def test_functions_can_be_called_and_read(module):
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            given = [name for name in given if name not in ("self", "cls")]
            assert len(given) <= MOST_PARAMETERS, f"{node.name} takes {len(given)}: pass its settings"
            if not node.name.startswith("_") and not node.decorator_list:
                where = f"{node.name}, line {node.lineno}"
                assert ast.get_docstring(node) or not _public(module, node), f"{where}: says nothing of itself"
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            assert len(node.generators) <= MOST_LOOPS, f"line {node.lineno}: too many loops in one expression"


def _public(module: str, node: ast.FunctionDef) -> bool:
    return any(node is one for one in tree(module).body)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module_of_its_name(verb):
    known = tree(f"tcar.lab.commands.{verb}")
    assert {"add_arguments", "run"} <= {node.name for node in known.body if isinstance(node, ast.FunctionDef)}


def test_and_every_module_of_verbs_is_one():
    assert {name.rpartition(".")[2] for name in MODULES if name.startswith("tcar.lab.commands.")} == set(VERBS)
