"""Small notebooks for the tests of what runs notebooks."""

from pathlib import Path

import nbformat
from nbformat import v4

SETUP = "from tcar.lab import params, results\nrun = params.from_notebook(globals())"


def write_notebook(path: Path, parameters: str | None, *cells: str) -> Path:
    """A notebook with a title, a cell tagged `parameters` unless it is None, and these code cells."""
    tagged = [] if parameters is None else [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    code = [v4.new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), *tagged, *code]), path)
    return path
