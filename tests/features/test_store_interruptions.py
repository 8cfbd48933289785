"""An extraction killed at any moment goes on to the same bytes, on one process or several."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bright import contents, seven_clips
from interrupted import in_a_child, make

from tcar.features import FeatureError, FeatureStore, extraction, verify
from tcar.features.making import records
from tcar.ground import locks

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    seven_clips(folder)
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """The content of the store when nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "isolated_map", extraction.isolated_map)  # `make` replaces it
        store = make(videos, tmp_path_factory.mktemp("whole"))
        assert set(store.flipped(view=1).tolist()) == {True, False}  # the index, which says so, is compared as well
        yield contents(store)


def end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def done(root: Path) -> set[int]:
    """The batches that are there, of a store that is not complete."""
    (folder,) = root.iterdir()
    return set(records(folder))


def test_killed_at_every_moment_and_resumed(videos, tmp_path):
    """Each moment kills an extraction of its own; what is complete afterwards is never anything but whole."""
    all_videos, videos = videos, tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        (videos / f"{number}.webm").symlink_to(all_videos / f"{number}.webm")
    whole = contents(make(videos, tmp_path / "whole"))
    moment, codes = 0, []
    while not codes or codes[-1] == KILLED:
        moment += 1
        root = tmp_path / str(moment)
        codes.append(end(in_a_child(videos, root, moment=moment)))
        (folder,) = root.iterdir()
        if (folder / "store.json").is_file():
            assert verify(folder) == []
        else:
            with pytest.raises(FeatureError, match="no complete feature store"):
                FeatureStore.open(folder)
        assert contents(make(videos, root)) == whole
    # the file of tokens, every batch and its record, the description, and the tidying up
    assert codes == [KILLED] * (moment - 1) + [0]
    assert moment > 20


def test_killed_again_and_again_in_one_folder(videos, whole, tmp_path):
    for moment in (4, 1, 9, 3, 7, 2, 12, 5, 8, 6):
        assert end(in_a_child(videos, tmp_path, moment=moment)) in (KILLED, 0)
    assert contents(make(videos, tmp_path)) == whole


def test_what_is_finished_is_kept(videos, whole, tmp_path, monkeypatch):
    assert end(in_a_child(videos, tmp_path, moment=14)) == KILLED
    before = done(tmp_path)
    assert 1 <= len(before) < 4
    made, note = [], extraction.note

    def noted(folder, rank, record):
        made.append(record["batch"])
        note(folder, rank, record)

    monkeypatch.setattr(extraction, "note", noted)
    assert contents(make(videos, tmp_path)) == whole
    assert set(made) == set(range(4)) - before


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_share_the_work_and_make_the_same_store(videos, whole, tmp_path, world):
    children = [in_a_child(videos, tmp_path, rank=rank, world=world) for rank in range(world)]
    assert [end(child) for child in children] == [0] * world
    assert contents(make(videos, tmp_path)) == whole


def test_a_rank_makes_its_own_batches_and_no_other(videos, tmp_path):
    for rank in (1, 0):
        assert end(in_a_child(videos, tmp_path, rank=rank, world=3, patience=0.1)) == 3
    assert done(tmp_path) == {0, 1, 3}


def test_the_ranks_that_are_late_are_named(videos, tmp_path, capfd):
    assert end(in_a_child(videos, tmp_path, rank=1, world=2, moment=8)) == KILLED
    assert end(in_a_child(videos, tmp_path, rank=0, world=2, patience=0.2)) == 3
    said = capfd.readouterr().err
    assert "no new batch for 0.2 s" in said
    assert "of rank 1 (" in said
    assert "rank 0 (" not in said


@pytest.mark.parametrize("world", [1, 4])
def test_another_number_of_processes_completes_what_ranks_have_begun(videos, whole, tmp_path, world):
    children = [in_a_child(videos, tmp_path, rank=rank, world=2, moment=5) for rank in range(2)]
    assert [end(child) for child in children] == [KILLED] * 2
    children = [in_a_child(videos, tmp_path, rank=rank, world=world) for rank in range(world)]
    assert [end(child) for child in children] == [0] * world
    assert contents(make(videos, tmp_path)) == whole


def test_of_several_commands_by_mistake_in_one_store_one_makes_it_and_the_others_name_that(
    videos, whole, tmp_path, capfd
):
    """Who comes when it is made opens it, and who comes before is refused."""
    children = [in_a_child(videos, tmp_path) for _ in range(4)]
    ends = {child: end(child) for child in children}
    makers = [str(child) for child, code in ends.items() if code == 0]
    assert makers and set(ends.values()) <= {0, 3}
    refusals = re.findall("another command extracts into it.*held by process ([0-9]+)", capfd.readouterr().err)
    assert len(refusals) == 4 - len(makers) and set(refusals) <= set(makers)
    assert contents(make(videos, tmp_path)) == whole


def test_a_store_that_another_command_makes_is_refused_and_once_that_was_killed_made(videos, whole, tmp_path):
    assert end(in_a_child(videos, tmp_path, moment=8)) == KILLED
    (folder,) = tmp_path.iterdir()
    with locks.alone(folder / ".lock", RuntimeError, "busy"):
        with pytest.raises(FeatureError, match=f"another command extracts into it.*held by process {os.getpid()}"):
            make(videos, tmp_path)
        assert not (folder / "store.json").exists()
    assert contents(make(videos, tmp_path)) == whole


def test_under_torchrun_with_a_rank_killed(videos, whole, tmp_path):
    """The real launcher: rank 1 dies, both are started again, and the bytes are the same."""
    script = Path(__file__).parents[1].joinpath("support", "interrupted.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = [*command, "--max-restarts", "1", "--monitor-interval", "0.1", str(script), str(videos), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr
    (folder,) = tmp_path.iterdir()
    assert contents(FeatureStore.open(folder)) == whole
