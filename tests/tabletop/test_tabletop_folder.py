"""A rendering takes nothing from a folder that it did not put there, and goes on wherever it was killed."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from one_process import Here

from tcar.__main__ import command
from tcar.data.ssv2 import DatasetError, load_split
from tcar.tabletop import dataset
from tcar.tabletop.dataset import Part, load_index, load_truth, render_dataset
from tcar.tabletop.settings import TabletopSettings

PROJECT = Path(__file__).parents[2]
TWO = TabletopSettings(
    classes=[45, 43], train_sets=1, validation_sets=1, test_sets=1, lengths=[16]
)
# Renders, and dies at its n-th write, before the file gets its name: with half of it or all of it in the draft.
DOOMED = """
import os, signal, sys
from tcar.ground import files
from pathlib import Path

sys.path.insert(0, str(Path("tests/support").absolute()))
from tests.tabletop.test_tabletop_folder import Here, dataset, render

number, half, saved = int(sys.argv[2]), sys.argv[3] == "half", os.replace

def replace(draft, path):
    global number
    number -= 1
    if not number:
        os.truncate(draft, os.path.getsize(draft) // (2 if half else 1))
        os.kill(os.getpid(), signal.SIGKILL)
    saved(draft, path)

files.os.replace, dataset.pool = replace, Here
render(sys.argv[1])
"""


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "pool", Here)
        yield


def render(root, **changes):
    options = {key: changes.pop(key) for key in ("seed", "workers", "limit", "part") if key in changes}
    return render_dataset(root, replace(TWO, **changes), **options)


def content(root: Path) -> dict[str, bytes]:
    """All files but the lock, in which a killed process leaves its name."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def unbroken(one_process, tmp_path_factory):
    return content(render(tmp_path_factory.mktemp("unbroken")))


def thesis(root: Path) -> dict[str, bytes]:
    """Put things of a user into a folder."""
    for name in ("thesis.tex", "videos/holiday.mp4", "videos/1.webm", "train.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"my {name}")
    return content(root)


@pytest.mark.parametrize("marker", [None, '{"mine": 1}', "my notes", "[]"])
def test_a_folder_that_is_not_tabletop_s_is_refused_and_named(tmp_path, capsys, marker):
    if marker is not None:
        (tmp_path / "fingerprint.json").write_text(marker)
    before = thesis(tmp_path)
    with pytest.raises(DatasetError, match="thesis.tex") as refused:
        render(tmp_path)
    assert str(tmp_path) in str(refused.value) and content(tmp_path) == before
    assert command("tabletop", [str(tmp_path), "--clips", "4", "--classes", "45", "43"]) == 2
    assert "thesis.tex" in capsys.readouterr().err and content(tmp_path) == before


@pytest.mark.parametrize("marker", ["", '{"fingerpr', '{"fingerprint": "0123', "\0" * 40, '{"fingerprint": "0123"}'])
def test_a_marker_that_does_not_say_how_many_clips_is_written_again_and_what_is_foreign_stays(
    tmp_path, marker, unbroken
):
    root = tmp_path / "cut"
    mine = {"thesis.tex": b"my thesis", "videos/holiday.mp4": b"mine", "ground_truth/notes/a.txt": b"too",
            "ground_truth/9notes.json": b"9"}
    for name, text in {**unbroken, **mine}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    (root / "fingerprint.json").write_text(marker)
    assert content(render(root)) == unbroken | mine

    (root / "fingerprint.json").write_text(marker)  # here it says nothing of files without ground truth
    for path in (root / "ground_truth").iterdir():
        path.is_file() and path.unlink()
    before = content(root)
    with pytest.raises(DatasetError, match="labels.json"):
        render(root)
    assert content(root) == before


def test_another_recipe_takes_the_clips_of_the_first_and_nothing_else(tmp_path):
    root = render(tmp_path / "x", train_sets=2)
    mine = {"notes.txt": b"n", "videos/99.webm": b"v", "ground_truth/99.json": b"g", "audit/health.json": b"h"}
    for name, text in mine.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(text)
    fresh = content(render(tmp_path / "y", seed=1))
    assert content(render(root, seed=1)) == fresh | mine

    before = content(root)
    with pytest.raises(DatasetError, match="99.webm"):
        render(root, train_sets=50, seed=1)
    assert content(root) == before


def test_nothing_is_deleted_behind_a_link(tmp_path):
    root = render(tmp_path / "x")
    (root / "videos").rename(tmp_path / "elsewhere")
    (root / "videos").symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path)
    render(root)
    with pytest.raises(DatasetError, match="link"):
        render(root, seed=1)
    assert content(tmp_path) == before


def test_a_rendering_killed_again_and_again_gives_the_files_of_an_unbroken_one(tmp_path, unbroken):
    root, left = tmp_path / "x", set()
    # The marker, the first ground truth, that of the second clip of the second set, the index.
    for number, how in ((1, "half"), (2, "half"), (11, "half"), (19, "whole")):
        killed = subprocess.run([sys.executable, "-c", DOOMED, str(root), str(number), how], cwd=PROJECT, check=False)
        assert killed.returncode == -signal.SIGKILL
        now = content(root)
        done = {key for key in now if "~" not in key}
        assert all(now[key] == unbroken[key] for key in done) and done >= left  # what is there is whole, and stays
        left = done
    render(root)
    assert content(root) == unbroken


def test_what_is_lost_of_a_finished_dataset_is_rendered_again(tmp_path, unbroken):
    root = render(tmp_path / "x")
    for name in ("videos/3.webm", "ground_truth/5.npz", "labels.json"):
        (root / name).unlink()
    assert content(render(root)) == unbroken


def test_a_damaged_ground_truth_is_named_and_comes_back_when_it_is_deleted(tmp_path, unbroken):
    root = render(tmp_path / "x")
    for name, read in (("index.json", load_index), ("1.json", lambda root: load_truth(root, "1")),
                       ("1.npz", lambda root: load_truth(root, "1"))):  # fmt: skip
        path = root / "ground_truth" / name
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(DatasetError, match=f"{name}.*render again"):
            read(root)
        path.unlink()
        render(root)
    assert content(root) == unbroken


@pytest.mark.parametrize("control", ["", "reversed"])
def test_a_part_has_the_clips_of_the_whole_and_no_others(tmp_path, control):
    """Of two sets of test the first: the same ids, the same bytes, the same twins; and nothing of other splits."""
    whole = render(tmp_path / "whole", test_sets=2, control=control)
    part = render(tmp_path / "part", test_sets=2, control=control, part=Part(("test",), 1))
    index = {clip: row for clip, row in load_index(whole).items() if row["set"] == "test-up_down-0"}
    assert load_index(part) == index and len(index) == 2
    videos, truths = ({path.name: path.read_bytes() for path in (part / folder).iterdir()}
                      for folder in ("videos", "ground_truth"))  # fmt: skip
    assert videos == {f"{clip}.webm": (whole / "videos" / f"{clip}.webm").read_bytes() for clip in index}
    assert truths.keys() == {"index.json", *(f"{clip}.{suffix}" for clip in index for suffix in ("json", "npz"))}
    assert (part / "labels.json").read_bytes() == (whole / "labels.json").read_bytes()
    found = {clip.id: (clip.label, clip.template) for clip in load_split(whole, "test")}
    assert {clip.id: (clip.label, clip.template) for clip in load_split(part, "test")} == {c: found[c] for c in index}
    assert load_split(part, "train") == []


def test_another_part_takes_the_place_of_the_one_before(tmp_path):
    folder = render(tmp_path / "x", test_sets=2, part=Part(("test",), 1))
    render(tmp_path / "x", test_sets=2, part=Part(("test",)))
    assert len(load_index(folder)) == len(list((folder / "videos").iterdir())) == 4
