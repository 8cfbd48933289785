"""Training on clips: it learns, it repeats, it leaves out what cannot be read, and freezes what is frozen."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from clip_files import coloured_clips

from tcar.data.clip_reader import fingerprint, square
from tcar.data.ssv2 import Clip
from tcar.models.baselines import create_baseline
from tcar.params import Training
from tcar.tokens import TrainingError
from tcar.train import baselines as training
from tcar.train.baselines import ClipJob, clip_logits, fit_clips

RECIPE = Training(warmup_epochs=1, label_smoothing=0.0, weight_decay=0.0)
JOB = ClipJob("cast_tiny", ("red", "blue"), seed=3, epochs=5, batch_size=6, learning_rate=0.01)
DEAD = "blocks.2.exchange.over_time."  # the last block's patches are read by nothing, as published


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, list[Clip]]:
    """Twelve clips to train on and six to validate, red and blue in turn."""
    made = coloured_clips(tmp_path_factory.mktemp("clips"), 18)
    return {"train": made[:12], "validation": made[12:]}


@pytest.fixture(scope="module")
def fitted(clips, tmp_path_factory):
    root = tmp_path_factory.mktemp("fits")
    return fit_clips(JOB, clips["train"], clips["validation"], RECIPE, root, workers=2), root


def test_it_learns_what_can_be_told_apart(fitted, clips):
    fit, _ = fitted
    assert [row["epoch"] for row in fit.history] == [1, 2, 3, 4, 5]
    assert fit.history[-1]["train_loss"] < 0.5 * fit.history[0]["train_loss"]
    assert fit.history[fit.best_epoch - 1]["validation_top1"] == 1.0
    logits = clip_logits(fit, clips["validation"], workers=1)
    assert logits.argmax(axis=1).tolist() == [clip.label for clip in clips["validation"]]
    assert (fit.broken, fit.notes) == ({}, ("its frozen experts have random weights",))


def test_the_rate_rises_once_and_falls_to_nothing(fitted):
    rates = [row["learning_rate"] for row in fitted[0].history]
    assert rates[:2] == pytest.approx([0.005, 0.01])  # two steps an epoch: half way up, then the peak
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.2 * JOB.learning_rate


def test_the_same_seed_gives_the_same_weights_and_another_one_others(clips, tmp_path):
    again, other = (
        fit_clips(dataclasses.replace(JOB, seed=seed, epochs=2), clips["train"], clips["validation"], RECIPE,
                  tmp_path / str(seed), workers=workers)
        for seed, workers in ((3, 1), (4, 2))
    )  # fmt: skip
    same = fit_clips(again.job, clips["train"], clips["validation"], RECIPE, tmp_path / "same", workers=2)
    assert same.history == again.history
    assert all(torch.equal(value, same.state_dict[key]) for key, value in again.state_dict.items())
    assert not torch.equal(again.state_dict["head.classifier.weight"], other.state_dict["head.classifier.weight"])


def test_a_kept_fit_is_not_made_again_and_a_damaged_one_is_refused(fitted, clips, tmp_path, monkeypatch):
    fit, root = fitted
    monkeypatch.setattr(training, "_train", lambda *_: pytest.fail("trained again"))
    kept = fit_clips(JOB, clips["train"], clips["validation"], RECIPE, root)
    assert (kept.history, kept.best_epoch) == (fit.history, fit.best_epoch)
    assert all(torch.equal(value, kept.state_dict[key]) for key, value in fit.state_dict.items())
    for job, train, recipe in (
        (dataclasses.replace(JOB, learning_rate=0.02), clips["train"], RECIPE),
        (JOB, clips["train"][:-1], RECIPE),
        (JOB, clips["train"], dataclasses.replace(RECIPE, clip_norm=2.0)),
    ):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            fit_clips(job, train, clips["validation"], recipe, root)
    copy = shutil.copytree(root, tmp_path / "copy")
    next(copy.rglob("model.safetensors")).write_bytes(b"half")
    with pytest.raises(TrainingError, match="is damaged .* delete it and run again"):
        fit_clips(JOB, clips["train"], clips["validation"], RECIPE, copy)


def test_a_gradient_reaches_all_that_is_trained_and_nothing_that_is_frozen(fitted):
    model = create_baseline("cast_tiny", 2, seed=3).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = training._Step(JOB, model, RECIPE, steps=2)
    frames = torch.randint(0, 256, (4, 8, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for _ in range(4):  # what starts at zero lets no gradient through in the first steps
        step(frames, torch.tensor([0, 1, 0, 1]), "here")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in trained - moved if not name.startswith(DEAD)} == set()
    assert moved <= trained
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in trained)
    assert fitted[0].state_dict.keys() == trained


def test_a_clip_that_cannot_be_read_is_left_out_and_reported(clips, tmp_path, caplog):
    broken = {}
    for split, name in (("train", "cut"), ("validation", "gone")):
        path = tmp_path / f"{name}.webm"
        if name == "cut":
            path.write_bytes(clips["train"][0].path.read_bytes()[:300])
        broken[split] = dataclasses.replace(clips[split][0], id=name, path=path)
    job = dataclasses.replace(JOB, epochs=2)
    with caplog.at_level("WARNING", "tcar"):
        fit = fit_clips(job, [broken["train"], *clips["train"]], [*clips["validation"], broken["validation"]],
                        RECIPE, tmp_path, workers=2)  # fmt: skip
    assert fit.broken == {"cut": "truncated", "gone": "missing"}
    assert "2 of 20 clips left out: cut (truncated), gone (missing)" in caplog.text
    assert len(fit.history) == 2
    logits = clip_logits(fit, [clips["train"][0], broken["train"], clips["train"][1]], workers=1)
    assert np.isfinite(logits).all(axis=1).tolist() == [True, False, True]


def test_nothing_left_to_read_is_an_error(clips, fitted, tmp_path):
    gone = [dataclasses.replace(clip, path=tmp_path / clip.path.name) for clip in clips["train"]]
    with pytest.raises(TrainingError, match="epoch 1/5: no clip to train on can be read"):
        fit_clips(JOB, gone, clips["validation"], RECIPE, tmp_path, workers=1)
    with pytest.raises(TrainingError, match="none of 12 clips can be read"):
        clip_logits(fitted[0], gone, workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 1}, "epochs is 1, but must be above warmup_epochs, which is 1, or 0 .* baseline_epochs"),
        ({"classes": ("one",)}, "train clip 1 has label 1, the job has 1 classes"),
        ({"baseline": "cast_tny"}, "did you mean 'cast_tiny'"),
    ],
)
def test_a_job_that_cannot_be_done_says_why(clips, tmp_path, change, message):
    with pytest.raises((TrainingError, ValueError), match=message):
        fit_clips(dataclasses.replace(JOB, **change), clips["train"], clips["validation"], RECIPE, tmp_path)


def test_a_loss_that_is_no_number_stops_the_training(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_forward", lambda model, frames: torch.full((len(frames), 2), torch.nan))
    with pytest.raises(TrainingError, match="seed 3, epoch 1/5: the loss is nan; lower baseline_learning_rate"):
        fit_clips(JOB, clips["train"], clips["validation"], RECIPE, tmp_path, workers=1)


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
