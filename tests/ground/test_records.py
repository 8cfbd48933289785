"""Result files are stable, say where they come from, and digests see what matters and nothing else."""

import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch

from tcar.ground import log, sources
from tcar.ground.records import ResultError
from tcar.lab import results
from tcar.lab.params import Params


def test_values_come_back_plain_rounded_and_without_nan(project):
    values = {
        "b": np.float64(1 / 3),
        "a": [np.int64(3), True, None, float("nan"), math.inf, -0.0],
        "t": torch.tensor([[1, 2]]),
        7: ("x",),
    }
    path = results.save(project / "results" / "x.json", values, params=Params())
    assert results.load(path) == {
        "b": 0.3333333333, "a": [3, True, None, None, None, 0.0], "t": [[1, 2]], "7": ["x"],
    }  # fmt: skip
    assert list(json.loads(path.read_text())) == ["7", "a", "b", "t"]


def test_equal_values_are_equal_bytes_whatever_their_order_and_last_digits(project):
    one = results.save(project / "one.json", {"a": 0.1 + 0.2, "b": {"x": 1, "y": 2}}, params=Params())
    two = results.save(project / "two.json", {"b": {"y": 2, "x": 1}, "a": 0.3}, params=Params())
    assert one.read_bytes() == two.read_bytes()


def test_provenance_lies_beside_and_not_among_the_values(project):
    (project / "in.json").write_text("{}")
    inputs, extra = [project / "in.json"], {"seconds": 1.5}
    results.save(project / "x.json", {"a": 1}, params=Params(), inputs=inputs, seeds=[0, 1], extra=extra)
    meta = results.load(project / "x.meta.json")
    assert meta["parameters"] == Params().as_dict()
    assert meta["inputs"] == {"in.json": results.digest(project / "in.json")}
    assert (meta["seeds"], meta["extra"], meta["commit"]) == ([0, 1], {"seconds": 1.5}, None)
    assert meta["versions"]["torch"] == torch.__version__
    assert results.load(project / "x.json") == {"a": 1}


def test_the_commit_and_uncommitted_changes_are_recorded(project):
    def git(*command):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *command], check=True, capture_output=True)

    git("init", "-q")
    git("add", "pyproject.toml")
    git("commit", "-qm", "x")
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    results.save(project / "x.json", {}, params=Params())
    clean = results.load(project / "x.meta.json")
    (project / "pyproject.toml").write_text('[project]\nname = "tcar"\n# edited\n')
    results.save(project / "x.json", {}, params=Params())
    assert (clean["commit"], clean["dirty"]) == (commit, False)
    assert results.load(project / "x.meta.json")["dirty"] is True


def test_what_was_made_from_another_version_is_known_in_a_copy_of_a_run_too(project, capsys):
    """A training that is done again in a copy leaves the original's evaluation beside it."""
    for name, source in (("extractors", None), ("training", "extractors"), ("evaluation", "training")):
        inputs = [project / "a" / f"{source}.json"] if source else []
        results.save(project / "a" / f"{name}.json", {"from": "a"}, params=Params(), inputs=inputs)
    shutil.copytree(project / "a", project / "b")
    assert results.outdated(project / "b") == {}
    results.save(project / "b" / "training.json", {"from": "a"}, params=Params())
    assert results.outdated(project / "b") == {}
    log.configure()
    results.save(project / "b" / "training.json", {"from": "b"}, params=Params())
    assert results.outdated(project / "b") == {"evaluation.json": ["training.json"]}
    assert "of an earlier training.json, so run their notebooks again: evaluation.json" in capsys.readouterr().err
    assert results.outdated(project / "a") == {}


@pytest.mark.parametrize("value", [object(), {1, 2}, {"1": 0, 1: 0}])
def test_what_json_cannot_hold_is_an_error_naming_the_place(project, value):
    with pytest.raises(ResultError, match=r"values\.rows\[0\]"):
        results.save(project / "x.json", {"rows": [value]}, params=Params())
    assert not (project / "x.json").exists()


def test_a_missing_and_a_broken_result_are_errors_naming_the_file(project):
    with pytest.raises(ResultError, match=r"x\.json: no such result"):
        results.load(project / "x.json")
    for content in (b"", b"{", b'{"a": 1', b"\0" * 9, b"\xff", b"[]", b"null"):
        (project / "x.json").write_bytes(content)
        with pytest.raises(ResultError, match=r"x\.json: (not JSON|has no named values).*delete it"):
            results.load(project / "x.json")


def test_a_digest_sees_content_only(project):
    (project / "a").write_text("same")
    (project / "b").write_text("same")
    assert results.digest(project / "a") == results.digest(project / "b")
    assert results.digest({"a": 1, "b": (2.0,)}) == results.digest({"b": [2.0], "a": 1})
    assert results.digest({"a": 1}) != results.digest({"a": 2})
    assert results.digest({"a": "1"}) != results.digest({"a": 1})


class TestCode:
    """A copy of a package in which modules can be changed."""

    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        folder = tmp_path / "tcar"
        for room in ("ground", "models"):
            (folder / room).mkdir(parents=True)
        files = {
            "__init__.py": "",
            "ground/__init__.py": "",
            "ground/log.py": "x = 1\n",
            "train.py": "from tcar.models.deep import f\nfrom tcar.ground import log\n",
            "plots.py": "import tcar.train\n",
            "models/__init__.py": "",
            "models/deep.py": 'def f(x):\n    """Doc."""\n    return x + 1\n',
            "models/other.py": "from tcar.models import deep\nfrom tcar.train import f\n",
            "bare.py": "import tcar\n\ndef f():\n    return tcar.models.deep.f(1)\n",
        }
        for name, text in files.items():
            (folder / name).write_text(text)
        monkeypatch.setattr(sources, "PACKAGE", folder)
        sources._module.cache_clear()
        yield folder
        sources._module.cache_clear()

    def changed(self, package, name: str, text: str) -> set[str]:
        """The modules whose digest differs after a file was rewritten."""
        modules = ("train", "plots", "models.deep", "models.other", "bare")
        before = {m: sources.code_digest(f"tcar.{m}") for m in modules}
        (package / name).write_text(text)
        sources._module.cache_clear()
        return {m for m in modules if sources.code_digest(f"tcar.{m}") != before[m]}

    def test_a_change_reaches_all_that_import_it_however_deep(self, package):
        everyone = {"train", "plots", "models.deep", "models.other", "bare"}
        assert self.changed(package, "models/deep.py", "def f(x):\n    return x + 2\n") == everyone

    def test_and_nobody_else(self, package):
        assert self.changed(package, "plots.py", "import tcar.train\nx = 1\n") == {"plots"}
        # The package of a module runs whenever the module is imported.
        assert "train" in self.changed(package, "models/__init__.py", "x = 1\n")

    def test_comments_docstrings_and_layout_do_not_count(self, package):
        text = '"""Module."""\n\n\ndef f(x):\n    """Other."""\n    # why\n    return (x\n            + 1)\n'
        assert self.changed(package, "models/deep.py", text) == set()

    def test_modules_that_compute_nothing_do_not_count(self, package):
        assert self.changed(package, "ground/log.py", "x = 2\n") == set()
        assert "tcar.ground.log" not in sources.module_digests("tcar.train")

    def test_packages_and_what_they_hold_are_reached(self, package):
        reached = sources.module_digests("tcar.models.other")
        assert set(reached) == {"tcar.ground", "tcar.models", "tcar.models.other", "tcar.models.deep", "tcar.train"}

    def test_a_module_that_is_not_there_is_an_error(self, package):
        shutil.rmtree(package / "models")
        with pytest.raises(ResultError, match=r"tcar\.models"):
            sources.code_digest("tcar.models")
