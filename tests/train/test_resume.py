"""A training that is killed, at whatever moment, ends with the weights of one that never was."""

import errno
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from token_task import FUSION, Kills, Recorder, kill_at_file, run, token_task

from tcar.ground import files
from tcar.train.checkpoints import KEPT, Checkpoints, Snapshot, find_fault
from tcar.train.trainer import train
from tcar.train.watch import TrainingError

# All that has a state: averaged weights, mixing, dropped tokens, accumulation, checkpoints within an epoch.
SETTINGS = {
    "epochs": 3, "weight_averaging": 0.9, "mixup": 0.5, "batch_size": 4, "accumulation": 2, "checkpoint_steps": 3,
}  # fmt: skip


def task_of(asked):
    return token_task(asked, fusion=replace(FUSION, dropout=0.1, drop_path=0.1, token_drop=0.2))


def in_a_child(folder: Path, watcher=None, moment: int = 0) -> int:
    """Train in a process of its own; return the number of the signal that ended it, or its exit status."""
    child = os.fork()
    if not child:
        code = 1
        try:
            asked = run(**SETTINGS)
            if moment:
                kill_at_file(moment, folder)
            train(task_of(asked), folder, [watcher] if watcher else [])
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, recorder, asked = tmp_path_factory.mktemp("whole"), Recorder(), run(**SETTINGS)
    return train(task_of(asked), folder, [recorder]), recorder, folder


def same_end(folder: Path, whole) -> None:
    """Everything that the last checkpoint holds, and the best weights, to the last bit."""
    uninterrupted, _, other = whole
    ours, theirs = (Checkpoints(root).read(Checkpoints(root).newest()) for root in (folder, other))
    for one, two in ((ours.weights, theirs.weights), (ours.averaged, theirs.averaged)):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    for number, state in theirs.optimiser["optimiser"]["state"].items():
        assert all(torch.equal(state[key], ours.optimiser["optimiser"]["state"][number][key]) for key in state)
    rows = [[row | {"seconds": 0} for row in kept.state.pop("history")] for kept in (ours, theirs)]
    assert rows[0] == rows[1]
    assert ours.state == theirs.state
    best = Checkpoints(folder).read_best(uninterrupted.best_epoch)
    assert all(torch.equal(value, best[name]) for name, value in uninterrupted.state_dict.items())
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in other.iterdir())


def test_killed_at_random_steps(tmp_path, whole):
    steps = sorted(random.Random(0).sample(range(1, 30), 3))
    for step in steps:
        assert in_a_child(tmp_path, Kills(step)) == signal.SIGKILL, step
        assert int(Checkpoints(tmp_path).newest().name[5:]) < step if step > 3 else True
    assert in_a_child(tmp_path) == 0
    same_end(tmp_path, whole)


def test_killed_at_every_kind_of_moment_in_writing(tmp_path, whole):
    """Each start comes further than the one before, or as far; the moments fall into drafts, renames and removals."""
    draw = random.Random(1)
    ends = [in_a_child(tmp_path, moment=draw.randint(20, 120)) for _ in range(6)]
    assert ends.count(signal.SIGKILL) >= 4, ends
    assert in_a_child(tmp_path) == 0
    same_end(tmp_path, whole)


def test_the_last_three_are_kept_and_none_but_the_best_weights_they_mean(whole):
    found, _, folder = whole
    kept = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in kept] == [f"step-{step:09}" for step in (24, 27, 30)]
    assert len(kept) == KEPT
    meant = {Checkpoints(folder).read(path).state["best_epoch"] for path in kept}
    assert {int(path.name[5:]) for path in folder.glob("best-*")} == meant
    assert found.best_epoch in meant


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.pt", "state.json", "manifest.json"])
def test_a_checkpoint_cut_in_half_is_passed_over_with_a_warning(tmp_path, whole, name, caplog):
    folder = shutil.copytree(whole[2], tmp_path / "copy")
    last = Checkpoints(folder).newest()
    content = (last / name).read_bytes()
    (last / name).write_bytes(content[: len(content) // 2])
    with caplog.at_level("WARNING", "tcar"):
        found = train(task_of(run(**SETTINGS)), folder)
    assert f"{last} is passed over" in caplog.text
    assert found.reason == "finished"
    same_end(folder, whole)


def test_a_disk_that_fails_does_not_have_a_training_begin_anew(tmp_path, whole, monkeypatch):
    folder, read = shutil.copytree(whole[2], tmp_path / "copy"), Path.read_bytes

    def stale(path):
        if path.suffix == ".safetensors":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(TrainingError, match="Stale file handle.*mend the disk and start again"):
        train(task_of(run(**SETTINGS)), folder)
    monkeypatch.undo()
    same_end(folder, whole)


def test_a_changed_bit_is_found(tmp_path, whole):
    folder = shutil.copytree(whole[2], tmp_path / "copy")
    last = Checkpoints(folder).newest()
    content = bytearray((last / "weights.safetensors").read_bytes())
    content[-3] ^= 1
    (last / "weights.safetensors").write_bytes(content)
    assert find_fault(last) == "the content of weights.safetensors has changed"
    assert Checkpoints(folder).newest().name == "step-000000027"


class Waits(Recorder):
    """A watcher that says when it begins, and then goes no further."""

    def __init__(self, sign: Path):
        super().__init__()
        self.sign = sign

    def step(self, row):
        self.sign.touch()
        time.sleep(120)


def test_a_second_training_in_the_folder_is_refused_and_goes_on_once_the_first_is_killed(tmp_path):
    folder, sign, asked = tmp_path / "training", tmp_path / "begun", run(epochs=2)
    child = os.fork()
    if not child:
        train(token_task(asked), folder, [Waits(sign)])
        os._exit(0)
    try:
        while not sign.exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.05)
        with pytest.raises(TrainingError, match=f"another process trains there.*held by process {child} on "):
            train(token_task(asked), folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert train(token_task(asked), folder).reason == "finished"


def test_who_only_reads_checkpoints_changes_nothing_and_sees_whole_ones(tmp_path, monkeypatch):
    """After every file that the writer has written, and every folder that it has deleted."""
    checkpoints, seen = Checkpoints(tmp_path), []
    half = checkpoints.folder / "step-000000009"
    half.mkdir(parents=True)
    (half / "state.json").write_text("{}")

    def watched(write):
        def call(*arguments):
            done = write(*arguments)
            seen.extend(find_fault(manifest.parent) for manifest in tmp_path.rglob("manifest.json"))
            return done

        return call

    for name in ("replace_file", "remove_folder"):
        monkeypatch.setattr(f"tcar.train.checkpoints.{name}", watched(getattr(files, name)))
    for step in range(1, 6):
        checkpoints.write_best({"epoch": step}, {"w": torch.zeros(1)})
        checkpoints.write(step, Snapshot({"w": torch.zeros(1)}, {}, {}, {"best_epoch": step}))
        assert checkpoints.newest().name == f"step-{step:09}" and half.is_dir()
    assert len(seen) > 50 and not any(seen)
    mine = [tmp_path / "best-model" / "weights.safetensors", checkpoints.folder / "step-000000009-copy" / "state.json"]
    for path in mine:  # names that no training gives
        path.parent.mkdir()
        path.write_text("mine")
    checkpoints.clean()
    assert not half.exists() and len(list(checkpoints.folder.iterdir())) == KEPT + 1
    assert all(path.read_text() == "mine" for path in mine)


def test_what_comes_after_a_resume_is_told_from_there_on(tmp_path, whole):
    """The rows of the steps are those of the uninterrupted run, whichever start told them."""
    in_a_child(tmp_path, Kills(17))
    recorder, asked = Recorder(), run(**SETTINGS)
    train(task_of(asked), tmp_path, [recorder])
    assert recorder.begun["step"] == 15
    told = [{key: row[key] for key in ("step", "loss", "gradient_norm", "learning_rate")} for row in recorder.steps]
    expected = [{key: row[key] for key in told[0]} for row in whole[1].steps[15:]]
    assert told == expected


def test_a_full_disk_leaves_the_checkpoints_before_whole(tmp_path):
    """The system itself refuses to let a file grow, in the middle of the second checkpoint."""
    checkpoints = Checkpoints(tmp_path)
    small, large = ({"w": torch.ones(size)} for size in (10, 200_000))
    before = checkpoints.write(1, Snapshot(small, {}, {}, {"best_epoch": 0}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"0\.8 MB could not be written .* checkpoints before are whole"):
            checkpoints.write(2, Snapshot(large, {}, {}, {"best_epoch": 0}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.newest() == before
    assert [path.name for path in before.parent.iterdir()] == [before.name]
    checkpoints.write(2, Snapshot(large, {}, {}, {"best_epoch": 0}))
    assert torch.equal(checkpoints.read(checkpoints.newest()).weights["w"], large["w"])


def test_copies_and_notes_beside_checkpoints_are_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write_best({"epoch": 1}, {"w": torch.ones(1)})
    first = checkpoints.write(1, Snapshot({}, {}, {}, {"best_epoch": 1}))
    mine = [shutil.copytree(first, first.with_name("step-000000001-copy")),
            shutil.copytree(tmp_path / "best-00001", tmp_path / "best-00001-copy")]  # fmt: skip
    (first / "notes.txt").write_text("mine")
    for step in range(2, 6):
        checkpoints.write(step, Snapshot({}, {}, {}, {"best_epoch": step}))
    assert not any(map(find_fault, mine)) and checkpoints.newest().name == "step-000000005"
    assert [path.name for path in first.iterdir()] == ["notes.txt"] and not (tmp_path / "best-00001").exists()


def test_best_weights_stay_while_a_kept_checkpoint_means_them(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch, best in enumerate((1, 1, 3, 4, 4, 4), start=1):
        if epoch == best:
            checkpoints.write_best({"epoch": epoch}, {"w": torch.tensor([float(epoch)])})
        checkpoints.write(epoch, Snapshot({}, {}, {}, {"best_epoch": best}))
        kept = {int(path.name[5:]) for path in tmp_path.glob("best-*")}
        assert kept == set((1, 1, 3, 4, 4, 4)[max(0, epoch - KEPT) : epoch])
    assert checkpoints.read_best(4)["w"].item() == 4
    (tmp_path / "best-00004" / "weights.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingError, match="best-00004: weights.safetensors has 4 of its .* train again"):
        checkpoints.read_best(4)
