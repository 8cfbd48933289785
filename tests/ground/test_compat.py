"""`import tcar` is light, and what needs torchvision imports after it, on a mismatched build as well."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, started in the project's folder."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_everything_that_needs_torchvision_imports():
    done = python("""
import tcar, sys
assert "torch" not in sys.modules, "import tcar must stay light"
from tcar.ground import compat
missing = compat.missing_operators()
import timm, torchvision, torch
# A build that matches is left alone, one that does not gets both operators.
assert missing == ([] if torchvision.extension._has_ops() else ["nms", "qnms"]), missing
assert hasattr(torch.ops.torchvision, "nms") and compat.declare_operators() == []
from torchvision.transforms import v2
from transformers import Dinov2Model
import torchmetrics
image = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)
assert torch.equal(v2.functional.horizontal_flip(image), image.flip(-1))
assert v2.Resize((4, 6))(image).shape == (3, 4, 6)
""")
    assert done.returncode == 0, done.stderr


def test_where_torchvision_was_imported_first_nothing_is_installed():
    done = python("""
import sys, types
sys.modules["torchvision"] = types.ModuleType("torchvision")
import tcar
assert "torch" not in sys.modules
assert not any(type(f).__module__ == "tcar.ground.compat" for f in sys.meta_path)
""")
    assert done.returncode == 0, done.stderr


def test_without_torchvision_there_is_nothing_to_declare(monkeypatch):
    import torch  # noqa: F401, while imports still work

    from tcar.ground import compat

    monkeypatch.setattr(compat.importlib.machinery.PathFinder, "find_spec", lambda *_: None)
    assert compat.missing_operators() == []


def test_every_public_name_is_there_and_none_is_a_module_that_would_stand_in_its_place():
    import tcar

    assert all(getattr(tcar, name) is not None for name in tcar.__all__)
    folder = Path(tcar.__file__).parent
    assert not [name for name in tcar.__all__ if (folder / name).is_dir() or (folder / f"{name}.py").is_file()]


def test_submodules_come_when_used_and_others_do_not_exist():
    import tcar

    assert tcar.lab.results is importlib.import_module("tcar.lab.results")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tcar.nothing
