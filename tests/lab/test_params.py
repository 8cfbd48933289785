"""Parameters: every way a file can be wrong is one error that names the key, the file and the fix."""

import ast
import dataclasses
import os
from pathlib import Path

import pytest
import yaml

from tcar.ground.processes import usable_cores
from tcar.lab import params
from tcar.lab.params import ParameterError

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "params").glob("*.yaml") if path.stem != "search")


def written(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text)
    return path


def test_values_reach_their_group_and_the_rest_keeps_its_default(project):
    run = params.load(written(project, "name: x\nepochs: 3\nlearning_rate: 1\nseeds: [4]\n"), seed=7)
    assert (run.common.name, run.common.seed, run.training.epochs, run.training.seeds) == ("x", 7, 3, [4])
    assert run.training.learning_rate == 1.0
    assert type(run.training.learning_rate) is float
    default = params.Params().as_dict()
    changed = {k for k, v in run.as_dict().items() if v != default[k]}
    assert changed == {
        "name", "seed", "epochs", "epochs_by_method", "learning_rate", "learning_rate_by_method", "seeds",
    }  # fmt: skip


def test_other_epochs_are_those_of_every_method_unless_both_are_stated(project):
    file = written(project, "epochs: 9\nepochs_by_method: {motion: 12}\n")
    assert params.load(file).training.epochs_by_method == {"motion": 12}
    assert params.load(file, epochs=5).training.epochs_by_method == {}
    assert params.load(file, epochs=5, epochs_by_method={"sum": 7}).training.epochs_by_method == {"sum": 7}
    assert params.load(file, seed=1).training.epochs_by_method == {"motion": 12}
    recipe = params.load(file, epochs=5, epochs_by_method={"sum": 7, "gated": 8, "gated_averaged": 9}).training
    stated = {"motion": 5, "joint_averaged": 5, "sum": 7, "sum_averaged": 7, "gated": 8, "gated_averaged": 9}
    assert {method: recipe.epochs_of(method) for method in stated} == stated  # an averaged method has those of its kind
    assert params.load(written(project, "epochs: 9")).training.epochs_by_method == {}
    one = params.load(written(project, "learning_rate: 0.01\nepochs_by_method: {motion: 12}")).training
    assert one.learning_rate_by_method == {} and one.learning_rate_of("late_concat") == 0.01
    own = params.load(written(project, "learning_rate: 0.01\nlearning_rate_by_method: {sum: 0.02}")).training
    assert [own.learning_rate_of(method) for method in ("sum", "sum_averaged", "motion")] == [0.02, 0.02, 0.01]
    assert params.load(written(project, "seed: 1")).training == params.Params().training


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epohcs: 3", ["epohcs", "did you mean 'epochs'"]),
        ("epochs: 3.5", ["epochs", "3.5", "expected int"]),
        ("epochs: true", ["epochs", "bool", "expected int"]),
        ("epochs: '3'", ["epochs", "text", "expected int"]),
        ("publish: 1", ["publish", "expected bool"]),
        ("name: 3", ["name", "expected str"]),
        ("name: ../x", ["name", "folder"]),
        ("seeds: [1, a]", ["seeds", "list[int]"]),
        ("epochs_by_method: {motion: a}", ["epochs_by_method", "dict[str, int]"]),
        ("learning_rate: .nan", ["learning_rate", "expected float"]),
        ("learning_rate: 1e-4", ["learning_rate", "text", "write 1.0e-4"]),
        ("learning_rate: 2.5e6", ["write 2.5e+6"]),
        ("epochs: 3\nepochs: 4", ["epochs", "twice"]),
        ("epochs: [", ["YAML"]),
        ("- epochs", ["key: value"]),
    ],
)
def test_a_wrong_file_is_one_error_naming_file_and_key(project, text, named):
    with pytest.raises(ParameterError) as error:
        params.load(written(project, text))
    assert all(word in str(error.value) for word in ["some.yaml", *named]), str(error.value)
    assert "\n" not in str(error.value)


def test_the_number_an_error_tells_to_write_is_read_as_that_number(project):
    for bad, good in (("1e-4", "1.0e-4"), ("2.5e6", "2.5e+6"), ("-3e2", "-3.0e+2")):
        with pytest.raises(ParameterError, match=good.replace("+", r"\+")):
            params.load(written(project, f"weight_decay: {bad}"))
        if float(good) >= 0:
            assert params.load(written(project, f"weight_decay: {good}")).training.weight_decay == float(bad)


def test_a_missing_file_names_those_there_are(project):
    written(project, "seed: 1")
    with pytest.raises(ParameterError, match=r"nope\.yaml: no such parameter file; there are .*some\.yaml"):
        params.load(project / "nope.yaml")


def test_every_key_belongs_to_one_group():
    names = [f.name for group in params.GROUPS.values() for f in dataclasses.fields(group)]
    assert len(names) == len(set(names)) == len(params.Params().as_dict())


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_files_that_come_with_the_project_are_valid(file):
    assert params.load(file).common.name == file.stem


def test_the_demo_states_every_default():
    stated = params.load(ROOT / "params" / "demo.yaml").as_dict()
    assert stated == {**params.Params().as_dict(), "publish": True}
    lines = (ROOT / "params" / "demo.yaml").read_text().splitlines()
    assert {line.partition(":")[0] for line in lines if line and line[0] != "#"} == set(stated)


def test_folders_follow_from_the_project_wherever_in_it_one_is(project, monkeypatch):
    here = params.load(written(project, "name: x\nruns: elsewhere"))
    assert here.run_dir == project / "elsewhere" / "x"
    assert here.results_dir == project / "elsewhere" / "x" / "results"
    assert here.figures_dir == project / "figures" / "x"
    assert here.data_root == project / "elsewhere" / "x" / "data"
    monkeypatch.chdir(project / "notebooks")
    assert params.from_values({"name": "x", "runs": "elsewhere"}).run_dir == here.run_dir
    assert params.from_values({"data_root": "d"}).data_root == project / "d"
    assert params.from_values({"data_root": "/d", "runs": "/r"}).data_root == Path("/d")


def test_workers_are_the_usable_cores_unless_stated(project):
    assert params.from_values({"workers": 3}).workers == 3
    assert params.Params().workers >= 1


def test_cores_are_counted_where_no_system_says_which_may_be_used(monkeypatch):
    from tcar.data.workers import worker_count

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert usable_cores() == worker_count(0) == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == worker_count(0) == params.Params(root=ROOT).workers == 7


def test_the_installed_package_says_that_it_is_no_project(tmp_path, monkeypatch):
    monkeypatch.setattr("tcar.ground.project.PACKAGE", tmp_path / "lib" / "tcar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match="a clone of the repository; the installed package has no parameter files"):
        params.Params()


def test_two_runs_share_no_list(project):
    params.Params().training.seeds.append(99)
    assert 99 not in params.Params().training.seeds


class TestNotebook:
    """The globals of a notebook are its parameters."""

    injected = "# Parameters\nepochs = 5\n"

    def passed(self, text: str, **declared) -> dict:
        """The globals of a notebook that declares these variables and is passed those of a cell."""
        cell, given = f"# Parameters\n{text}\n", {}
        exec(cell, given)
        del given["__builtins__"]
        return self.namespace("declared", cell, **declared | given)

    def namespace(self, *cells: str, **variables) -> dict:
        return {"In": ["", *cells], "Out": {}, "Path": Path, "params": params, "_i1": "x", **variables}

    def test_declared_variables_are_read(self, project):
        run = params.from_notebook(self.namespace("epochs = 5", epochs=5))
        assert run.training.epochs == 5

    def test_a_wrong_type_is_an_error(self, project):
        with pytest.raises(ParameterError, match="learning_rate.*write 1.0e-4"):
            params.from_notebook(self.namespace(learning_rate="1e-4"))
        with pytest.raises(ParameterError, match="epochs is <class"):
            params.from_notebook(self.namespace(epochs=Path))

    def test_a_notebook_can_be_run_again_in_the_same_kernel(self, project):
        """Its imports are then there before its parameters are read."""
        assert params.from_notebook(self.namespace("epochs = 5", epochs=5, figures=ast)).training.epochs == 5

    def test_an_unknown_name_is_an_error_only_when_papermill_passed_it(self, project):
        assert params.from_notebook(self.namespace("epohcs = 5", epohcs=5)) == params.Params()
        with pytest.raises(ParameterError, match="'epohcs', did you mean 'epochs'"):
            params.from_notebook(self.passed("epohcs = 5", epochs=1))

    def test_a_file_has_what_is_neither_passed_nor_changed_in_the_cell(self, project, monkeypatch):
        default = params.Params()
        written(project, "name: x\nepochs: 30\nbatch_size: 8\nlearning_rate: 0.1\nwarmup_epochs: 3\n")
        monkeypatch.chdir(project / "notebooks")
        stated = ("epochs", "batch_size", "learning_rate", "weight_decay", "name")
        declared = {key: default.as_dict()[key] for key in stated}
        run = params.from_notebook(self.passed(f'params_file = "some.yaml"\nepochs = {declared["epochs"]}', **declared))
        assert (run.common.name, run.training.epochs, run.training.batch_size) == ("x", declared["epochs"], 8)
        assert run.training.warmup_epochs == 3  # which the notebook does not declare
        assert run.training.weight_decay == default.training.weight_decay
        run = params.from_notebook(self.namespace(params_file="some.yaml", **declared | {"batch_size": 12}))
        assert (run.training.epochs, run.training.batch_size, run.training.learning_rate) == (30, 12, 0.1)
        with pytest.raises(ParameterError, match=r"nope\.yaml: no such parameter file"):
            params.from_notebook(self.namespace(params_file="nope.yaml"))

    def test_epochs_passed_alone_are_those_of_every_method(self, project, capsys):
        both = {"epochs": 14, "epochs_by_method": {"sum": 24}}
        written(project, "epochs: 9\nepochs_by_method: {motion: 12}")
        file = {"params_file": "some.yaml"}
        assert params.from_notebook(self.passed("epochs = 3", **both)).training.epochs_by_method == {}
        assert params.from_notebook(self.passed("epochs = 3", **both, **file)).training.epochs_by_method == {}
        assert params.from_notebook(self.passed("seed = 3", **both)).training.epochs_by_method == {"sum": 24}
        assert "sum" not in capsys.readouterr().err.replace("epochs: 14, but of sum 24", "")
        both_passed = self.passed("epochs = 3\nepochs_by_method = {'motion': 12}", **both)
        assert params.from_notebook(both_passed).training.epochs_by_method == {"motion": 12}
        assert "epochs: 3, but of motion 12 (epochs_by_method)" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("methods = 'cross_attention, sum'", '-y "methods: [cross_attention, sum]"'),
            ("methods = '[cross_attention]'", '-y "methods: [cross_attention]"'),
            ("seeds = 3", '-y "seeds: [3]"'),
            ("epochs_by_method = 'sum: 3'", '-y "epochs_by_method: {sum: 3}"'),
            ("name = 3", "-y \"name: '3'\""),
            ("publish = 'True'", '-y "publish: true"'),
        ],
    )
    def test_a_value_that_came_as_text_is_told_how_to_be_passed(self, project, text, shown):
        with pytest.raises(ParameterError) as error:
            params.from_notebook(self.passed(text))
        assert str(error.value).endswith(shown)
        key, value = yaml.safe_load(shown[4:-1]).popitem()
        params.from_values({key: value})  # what it says to write is taken

    def test_the_log_is_kept_in_the_run_unless_the_pipeline_keeps_it(self, project, monkeypatch):
        params.from_notebook(self.namespace(name="x"))
        assert (project / "runs" / "x" / "logs" / "notebook.log").is_file()
        monkeypatch.setenv("TCAR_NOTEBOOK", "03_training")
        params.from_notebook(self.namespace(name="y"))
        assert not (project / "runs" / "y").exists()

    def test_by_hand_it_draws_in_the_run_and_not_among_the_figures_of_the_paper(self, project, monkeypatch):
        drawn = params.from_notebook(self.namespace(name="x")).figures_dir
        assert drawn == project / "runs" / "x" / "figures"
        monkeypatch.setenv("TCAR_NOTEBOOK", "03_training")
        assert params.from_notebook(self.namespace(name="x")).figures_dir == project / "figures" / "x"


def test_checkpoints_are_found_from_the_project_folder_wherever_one_works(project, monkeypatch):
    (project / "weights").mkdir()
    (project / "weights/i3d.pth").touch()
    values = {"motion_checkpoint": "weights/i3d.pth", "semantic_checkpoint": "facebook/dinov2-small"}
    run = params.from_values(values)
    monkeypatch.chdir(project / "notebooks")
    assert run.stream_checkpoints == {
        "motion_checkpoint": str(project / "weights/i3d.pth"), "semantic_checkpoint": "facebook/dinov2-small"
    }  # fmt: skip
    assert params.from_values({}).stream_checkpoints == {"motion_checkpoint": None, "semantic_checkpoint": None}
