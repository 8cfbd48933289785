"""What all tests share. The shapes and types tcar declares are enforced in the tests only: they cost time."""

import logging
import os
from pathlib import Path

import jaxtyping
import pytest

HOOK = jaxtyping.install_import_hook("tcar", "typechecker.check")
ROOT = Path(__file__).parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import tcar  # noqa: E402, F401  tests may import timm first, which needs a torchvision that works (tcar.ground.compat)


@pytest.fixture
def shared() -> Path:
    """The folder of reference clips and label lists beside the project; without it, the test is skipped."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture
def unchecked():
    """Take the type checker away: for tests of what a function itself says about input of the wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project folder, and the current one: relative paths of parameters resolve here."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "tcar"\n')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(monkeypatch):
    """A server of files on this machine."""
    from file_server import serving

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as served:
        yield served


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty local cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """An empty folder of downloads, and the place of the dataset that is to be made of them."""
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads", tmp_path / "dataset"


@pytest.fixture
def here(project) -> Path:
    """An empty project with the base of a small search."""
    from searches import BASE

    (project / "params").mkdir()
    (project / "params" / "small.yaml").write_text(BASE)
    return project


@pytest.fixture
def extraction_inline(monkeypatch):
    """Extract features in this process, where a test is not about processes."""
    import torch
    from bright import in_this_process

    threads = torch.get_num_threads()
    monkeypatch.setattr("tcar.features.extraction.isolated_map", in_this_process)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _fresh_logging():
    """No test sees the log handlers of another."""
    yield
    logger = logging.getLogger("tcar")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)


def pytest_collection_modifyitems(items):
    """The pipeline in small takes longest by far: whoever runs it begins, and the others share the rest."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")
