"""The notebooks are thin, clean and declare only parameters that exist, with the demo's defaults."""

import ast
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.translators import PythonTranslator

from tcar.lab import params, pipeline

FOLDER = Path(__file__).parents[2] / "notebooks"
README = FOLDER.parent / "README.md"
NAMES = (
    "00_data_audit",
    "01_extractors",
    "02_fusion",
    "03_training",
    "04_evaluation",
    "05_ablations",
    "06_interpretability",
)
APART = "explore"  # outside the ordered run: it has no parameters, and nothing stands on it
MAX_LINES, MAX_FUNCTION_LINES, MAX_PARAMETER_LINES = 15, 10, 40


@pytest.fixture(params=NAMES)
def notebook(request):
    return nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook):
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    return cell


def test_the_folder_holds_these_seven_and_one_to_explore():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb"))) == (*NAMES, APART)
    assert APART not in [step.name for step in pipeline.STEPS]


@pytest.mark.parametrize("name", [*NAMES, APART])
def test_valid_and_without_outputs(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.outputs for cell in code_cells(notebook)] == [[]] * len(code_cells(notebook))
    assert {cell.execution_count for cell in code_cells(notebook)} == {None}


@pytest.mark.parametrize("name", [*NAMES, APART])
def test_cell_ids_are_names_and_unique(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    # Generated ids are eight hexadecimal digits and change with every rewrite; these are chosen.
    assert all(cell_id[2] == "-" for cell_id in ids)


def test_declared_parameters_exist_with_the_default_of_the_demo(notebook):
    assignments = ast.parse(parameters_cell(notebook).source).body
    assert all(isinstance(line, ast.Assign) and len(line.targets) == 1 for line in assignments)
    declared = {line.targets[0].id: ast.literal_eval(line.value) for line in assignments}
    assert len(declared) == len(assignments)
    demo = params.load(FOLDER.parent / "params" / "demo.yaml").as_dict() | {params.FILE: ""}
    assert declared == {key: demo[key] for key in declared}
    assert params.FILE in declared


def test_papermill_knows_every_declared_parameter_and_so_warns_of_none(notebook):
    """It reads the cell line by line, by its own rules, and calls any other parameter that it is given unknown."""
    known = PythonTranslator.inspect(parameters_cell(notebook))
    declared = [line.targets[0].id for line in ast.parse(parameters_cell(notebook).source).body]
    assert [parameter.name for parameter in known] == declared


def test_papermill_warns_of_nothing_at_the_command_of_the_readme(tmp_path, caplog):
    (command,) = re.findall(r"papermill (notebooks/\S+\.ipynb) \S+((?: -p \S+ \S+)+)", README.read_text())
    source, passed = README.parent / command[0], dict(re.findall(r"-p (\S+) (\S+)", command[1]))
    assert {params.FILE, "name", "epochs"} <= passed.keys()
    assert (README.parent / passed[params.FILE]).is_file()
    with caplog.at_level("WARNING"):
        papermill.execute_notebook(source, tmp_path / "out.ipynb", passed, prepare_only=True)
    assert not caplog.records


def test_parameters_are_read_in_the_next_code_cell(notebook):
    cells = code_cells(notebook)
    assert cells[0] is parameters_cell(notebook)
    assert "run = params.from_notebook(globals())" in cells[1].source


def test_every_used_group_of_parameters_is_declared(notebook):
    """A run parameter that the notebook reads but does not declare could not be set by a user of papermill."""
    declared = {line.targets[0].id for line in ast.parse(parameters_cell(notebook).source).body}
    groups = {name: group.__dataclass_fields__ for name, group in params.GROUPS.items()}
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                of = node.value
                if isinstance(of.value, ast.Name) and of.value.id == "run" and of.attr in groups:
                    assert node.attr in groups[of.attr]
                    assert node.attr in declared, f"{cell.id} reads run.{of.attr}.{node.attr}"


def kept(node: ast.AST) -> set[str]:
    """The variables that a cell leaves behind."""
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda | ast.FunctionDef):
        return set()
    own = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    return own.union(*map(kept, ast.iter_child_nodes(node)))


def test_run_again_in_the_same_kernel_a_notebook_has_the_same_parameters(notebook):
    """A variable that a later cell leaves under the name of a parameter would be read as one."""
    declared = kept(ast.parse(parameters_cell(notebook).source))
    left = set().union(*(kept(ast.parse(cell.source)) for cell in code_cells(notebook)))
    assert left & params.FIELDS.keys() <= declared


def test_cells_are_short_and_functions_shorter(notebook):
    for cell in code_cells(notebook):
        compile(cell.source, cell.id, "exec")
        most = MAX_PARAMETER_LINES if cell is parameters_cell(notebook) else MAX_LINES
        assert len(cell.source.splitlines()) <= most, cell.id
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, cell.id


def test_the_notebook_to_explore_is_short_and_asks_for_no_parameters():
    """It writes nothing, so it takes no run for its own."""
    notebook = nbformat.read(FOLDER / f"{APART}.ipynb", as_version=4)
    (cell,) = code_cells(notebook)
    assert len(cell.source.splitlines()) <= MAX_LINES and not cell.metadata
    assert not any(word in cell.source for word in ("from_notebook", "save", "write"))
    assert cell.source.endswith("Explorer()")
