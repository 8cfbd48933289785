"""Notebooks as the pipeline sees them: their code, the parameters they declare, the modules they stand on."""

import ast
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tcar.ground import sources
from tcar.ground.errors import TcarError
from tcar.lab import params, results


class NotebookError(TcarError, RuntimeError):
    """A notebook is missing, malformed or failed; the message names it, the cell and the fix."""


@dataclass(frozen=True)
class Notebook:
    """The code cells of one notebook file."""

    path: Path
    cells: tuple[str, ...]
    declaration: str  # the source of the cell tagged `parameters`

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree of all code cells, one after the other."""
        body = [node for number, cell in enumerate(self.cells, 1) for node in self._parse(cell, number).body]
        return ast.Module(body=body, type_ignores=[])

    @property
    def digest(self) -> str:
        """A digest of what the code does: comments, layout, outputs and execution counts do not count."""
        return results.digest([ast.dump(self.tree), *re.findall(r"^\s*[%!].*", "\n".join(self.cells), re.M)])

    @property
    def declared(self) -> dict[str, Any]:
        """The variables of the `parameters` cell and their defaults."""
        found = {}
        for node in self._parse(self.declaration, "tagged `parameters`").body:
            names = [t.id for t in getattr(node, "targets", ()) if isinstance(t, ast.Name)]
            try:
                found |= {name: ast.literal_eval(node.value) for name in names}
            except ValueError:
                names = []
            if not names:
                line = ast.unparse(node)
                raise NotebookError(f"{self.path}: the `parameters` cell holds more than `name = value`: {line}")
        return found

    @property
    def modules(self) -> list[str]:
        """The modules of tcar that the cells import."""
        return sorted(sources.imported_modules(self.tree))

    @property
    def groups(self) -> set[str]:
        """The groups of parameters that the notebook declares variables of, or reads as `run.<group>`."""
        named = {group for group, of in params.GROUPS.items() if self.declared.keys() & of.__dataclass_fields__.keys()}
        read = {
            node.attr for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "run"
        }  # fmt: skip
        return named | (read & params.GROUPS.keys())

    def _parse(self, cell: str, which: object) -> ast.Module:
        try:
            # Magics and shell lines are no Python; an empty block must not lose its only statement.
            return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", cell, flags=re.M))
        except SyntaxError as error:
            raise NotebookError(f"{self.path}, code cell {which}, line {error.lineno}: {error.msg}") from None


def read(path: Path) -> Notebook:
    """A notebook file that is there and readable, and has one cell tagged `parameters`, all of whose variables are.

    Raises NotebookError otherwise, and ParameterError for a variable that is no parameter, or has a wrong value.
    """
    if not path.is_file():
        raise NotebookError(f"{path}: no such notebook")
    try:
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        code = tuple("".join(cell["source"]) for cell in cells)
        tagged = [s for s, c in zip(code, cells, strict=True) if "parameters" in c["metadata"].get("tags", [])]
    except (ValueError, KeyError, TypeError) as error:
        raise NotebookError(f"{path}: not a notebook ({error})") from None
    if len(tagged) != 1:
        raise NotebookError(
            f"{path}: {len(tagged)} cells are tagged `parameters`, expected just one, or the values of the "
            "parameter file are lost: tag the cell of the defaults"
        )
    notebook = Notebook(path, code, tagged[0])
    declared = {name: value for name, value in notebook.declared.items() if name != params.FILE}
    params.check_values(declared, source=str(path))
    return notebook
