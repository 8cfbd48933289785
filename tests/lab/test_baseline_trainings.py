"""Baselines trained on clips: they learn, leave out what cannot be read, and freeze what is frozen."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import coloured_clips

from tcar.data.ssv2 import Clip, fingerprint
from tcar.data.views import square
from tcar.lab import params
from tcar.lab.steps import baselines as stage
from tcar.models.baselines import create_baseline
from tcar.train.clip_tasks import BaselineTask
from tcar.train.processes import Processes
from tcar.train.stepping import Stepper
from tcar.train.tasks import Batch
from tcar.train.watch import TrainingError

ASKED = {
    "baselines": ["cast_tiny"], "epochs": 5, "warmup_epochs": 1, "weight_decay": 0.0, "baseline_batch_size": 6,
    "baseline_learning_rate": 0.01, "seeds": [3], "workers": 2, "device": "cpu", "name": "clips",
}  # fmt: skip
NAMES = ["red", "blue"]
DEAD = "blocks.3.exchange.over_time."  # the last block's patches are read by nothing, as published


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, list[Clip]]:
    """Twelve clips to train on, six to validate and six to test, red and blue in turn."""
    made = coloured_clips(tmp_path_factory.mktemp("clips"), 24)
    return {"train": made[:12], "validation": made[12:18], "test": made[18:]}


def asked(root: Path, **changes) -> params.Params:
    return dataclasses.replace(params.from_values(ASKED | changes), root=root)


@pytest.fixture(scope="module")
def fitted(clips, tmp_path_factory):
    """The run, and what it has trained."""
    run = asked(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "healthy_clips", lambda run: clips)
        patch.setattr(stage, "class_names", lambda run: NAMES)
        return run, stage.train_baselines(run)["cast_tiny"][0]


@pytest.fixture
def here(clips, monkeypatch):
    monkeypatch.setattr(stage, "healthy_clips", lambda run: clips)
    monkeypatch.setattr(stage, "class_names", lambda run: NAMES)


def test_it_learns_what_can_be_told_apart(fitted, clips, here):
    run, fit = fitted
    assert [row["epoch"] for row in fit.history] == [1, 2, 3, 4, 5]
    assert fit.history[-1]["train_loss"] < 0.5 * fit.history[0]["train_loss"]
    assert fit.best["validation_top1"] == 1.0 and fit.broken == {}
    logits, kept = stage.baseline_logits(run, {"cast_tiny": [fit]}, "test", [clip.id for clip in clips["test"]])
    assert kept.all()
    assert logits["cast_tiny"][0].argmax(axis=1).tolist() == [clip.label for clip in clips["test"]]


def test_a_kept_fit_is_not_made_again(fitted, here, monkeypatch):
    run, fit = fitted
    monkeypatch.setattr("tcar.train.training.Training.step", lambda *_: pytest.fail("trained again"))
    assert stage.train_baselines(run)["cast_tiny"] == [fit]
    wider = dataclasses.replace(run, training=dataclasses.replace(run.training, clip_norm=2.0))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        stage.train_baselines(wider)


def test_a_gradient_reaches_all_that_is_trained_and_nothing_that_is_frozen(fitted, clips):
    run, fit = fitted
    task = BaselineTask("cast_tiny", clips, NAMES, run, 3)
    torch.manual_seed(3)
    made = Stepper(task, Processes(run, True))
    model = made.learner.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frames = torch.randint(0, 256, (4, 16, 80, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch((frames,), torch.tensor([0, 1, 0, 1]), [0, 1, 2, 3], [0, 1, 2, 3])
    for number in range(4):  # what starts at zero lets no gradient through in the first steps
        made.step([batch], number, 1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in trained - moved if not name.startswith(DEAD)} == set()
    assert moved <= trained and fit.trained.keys() == trained
    fresh = create_baseline("cast_tiny", 2, seed=3).model.state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in model.state_dict().items() if name not in trained)


def test_a_clip_that_cannot_be_read_is_left_out_and_reported(clips, tmp_path, monkeypatch, caplog):
    cut = tmp_path / "cut.webm"
    cut.write_bytes(clips["train"][0].path.read_bytes()[:300])
    broken = [dataclasses.replace(clips["train"][0], id="cut", path=cut),
              dataclasses.replace(clips["validation"][0], id="gone", path=tmp_path / "gone.webm")]  # fmt: skip
    found = {"train": [broken[0], *clips["train"]], "validation": [*clips["validation"], broken[1]],
             "test": [clips["test"][0], broken[0], clips["test"][1]]}  # fmt: skip
    monkeypatch.setattr(stage, "healthy_clips", lambda run: found)
    monkeypatch.setattr(stage, "class_names", lambda run: NAMES)
    run = asked(tmp_path, epochs=2)
    fits = stage.train_baselines(run)
    wanted = {"cut": "truncated", "gone": "missing"}
    assert fits["cast_tiny"][0].broken == wanted
    assert len(fits["cast_tiny"][0].history) == 2
    assert stage.baseline_record(run, fits)["baselines"]["cast_tiny"]["broken"] == wanted
    with caplog.at_level("WARNING", "tcar"):
        logits, kept = stage.baseline_logits(run, fits, "test", [clip.id for clip in found["test"]])
    assert kept.tolist() == [True, False, True] and len(logits["cast_tiny"][0]) == 2
    assert "1 of 3 clips left out: cut (truncated)" in caplog.text


def test_nothing_left_to_read_is_an_error(clips, tmp_path, monkeypatch):
    gone = [dataclasses.replace(clip, path=tmp_path / clip.path.name) for clip in clips["train"]]
    monkeypatch.setattr(stage, "healthy_clips", lambda run: clips | {"train": gone})
    monkeypatch.setattr(stage, "class_names", lambda run: NAMES)
    with pytest.raises(TrainingError, match="epoch 1/5: no clip to train on is left, 12 cannot be read"):
        stage.train_baselines(asked(tmp_path, workers=1))


# --- frames


@pytest.mark.parametrize(("height", "width"), [(30, 60), (60, 30), (40, 40)])
def test_a_crop_is_the_middle_and_a_squash_is_all(height, width):
    """A frame whose middle square is white and whose margins are black."""
    frames, short = np.zeros((2, height, width, 3), np.uint8), min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    frames[:, top : top + short, left : left + short] = 255
    cropped, squashed = square(frames, 20, crop=True), square(frames, 20, crop=False)
    assert cropped.shape == squashed.shape == (2, 20, 20, 3)
    assert cropped.min() == 255
    assert squashed.mean() == pytest.approx(frames.mean(), abs=3)


def test_frames_smaller_than_the_square_are_enlarged():
    assert square(np.full((1, 10, 15, 3), 9, np.uint8), 32, crop=True).shape == (1, 32, 32, 3)


def test_the_prints_of_clips_change_with_what_they_are(clips, tmp_path):
    some, prints = clips["train"][:2], set()
    other = tmp_path / "0.webm"
    other.write_bytes(some[0].path.read_bytes() + b"x")
    for change in ({}, {"label": 1}, {"id": "x"}, {"path": other}, {"path": tmp_path / "none"}):
        prints.add(fingerprint([dataclasses.replace(some[0], **change), some[1]]))
    prints.add(fingerprint(some[::-1]))
    assert len(prints) == 6
