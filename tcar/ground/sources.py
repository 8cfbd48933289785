"""Digests of code, by which what other code made is known as stale."""

import ast
import hashlib
import itertools
from functools import cache
from pathlib import Path

from tcar.ground.records import ResultError, digest

PACKAGE = Path(__file__).parents[1]
# These carry settings and text but compute no number: a change in them makes no result stale, nor does one in the
# settings of a room, whose values are compared themselves.
PASSIVE = {"tcar", "tcar.ground.compat", "tcar.ground.errors", "tcar.ground.log", "tcar.lab.params"}


def code_digest(*module_names: str) -> str:
    """A digest of what these modules of tcar do: of their syntax trees, and those of all modules of tcar they
    import, however deep. Comments, docstrings and layout do not count. Raises ResultError: no such module."""
    return digest(module_digests(*module_names))


def module_digests(*module_names: str) -> dict[str, str]:
    """The digest of each module of tcar that is reached from these, but for the passive ones (`PASSIVE`)."""
    missing = [name for name in module_names if _source(name) is None]
    if missing:
        raise ResultError(f"no such module: {', '.join(missing)}")
    reached, queue = {}, list(module_names)
    while queue:
        name = queue.pop()
        if name not in reached and name not in PASSIVE and not name.endswith(".settings"):
            reached[name], imported = _module(name)
            # Importing a.b.c runs a and a.b as well.
            queue += {
                parent for m in (name, *imported) for parent in itertools.accumulate(m.split("."), "{}.{}".format)
            }
    return dict(sorted(reached.items()))


def imported_modules(tree: ast.AST) -> set[str]:
    """The modules of tcar that a syntax tree imports, each by its full name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))  # `tcar.streams.registry.create_stream` after a bare `import tcar`
    return {name for name in found if name.partition(".")[0] == "tcar" and _source(name) is not None}


@cache
def _module(name: str) -> tuple[str, frozenset[str]]:
    """The digest of one module and the modules it imports."""
    file = _source(name)
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    imported = frozenset(imported_modules(tree))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()[:16], imported


def _without_docstrings(tree: ast.Module) -> ast.Module:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


def _source(name: str) -> Path | None:
    """The file of a module of tcar, found without importing anything."""
    first, *rest = name.split(".")
    stem = PACKAGE.joinpath(*rest)
    files = [stem / "__init__.py", *([stem.with_suffix(".py")] if rest else [])]
    return next((file for file in files if file.is_file()), None) if first == "tcar" else None
