import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from videos import write_video

import tcar
from tcar.__main__ import command
from tcar.data.video import VideoError, probe, read_frames, segment_indices
from tcar.fusion.kinds import FusionConfig
from tcar.models.opening import PredictionError, full_size_model
from tcar.models.tca import TCA, TCAConfig
from tcar.serve.predict import predict
from tcar.streams.registry import create_stream
from tcar.streams.weights import CheckpointError

NAMES = ("Pushing something", "Pulling something", "Covering something")


def tiny(**checkpoints):
    """A small model; its streams are random, or have the weights of the checkpoints."""
    streams = {
        role: create_stream(name, checkpoint=checkpoints.get(f"{role}_checkpoint"))
        for role, name in (("semantic", "dinov2_tiny"), ("motion", "i3d_tiny"))
    }
    widths = {f"{role}_width": stream.width for role, stream in streams.items()}
    fusion = FusionConfig(num_classes=3, width=16, heads=2, blocks=1, **widths)
    torch.manual_seed(0)
    config = TCAConfig("dinov2_tiny", "i3d_tiny", 8, 16, (2, 2, 2), (2, 2, 2), NAMES, fusion)
    return TCA(config, **streams)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoints of both streams, as the package or a user has them."""
    folder, model = tmp_path_factory.mktemp("weights"), tiny()
    for role in ("semantic", "motion"):
        save_file(getattr(model, role).backbone.state_dict(), folder / f"{role}.safetensors")
    return {f"{role}_checkpoint": folder / f"{role}.safetensors" for role in ("semantic", "motion")}


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (20, 60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(weights, tmp_path_factory):
    """A saved model of trained streams, calibrated with temperature 2."""
    folder = tmp_path_factory.mktemp("model")
    tiny(**weights).save_pretrained(folder)
    (folder / "calibration.json").write_text(json.dumps({"temperature": 2.0}))
    return folder


def test_probabilities_are_those_of_the_model_at_its_temperature(saved, weights, frames):
    found = predict(frames, saved, top=3, **weights)
    picked = [torch.from_numpy(frames[segment_indices(20, count)])[None] for count in (8, 16)]
    with torch.inference_mode():
        logits = TCA.from_pretrained(saved, **weights)(*picked)[0].double()
    expected = torch.exp(logits / 2) / torch.exp(logits / 2).sum()
    order = expected.argsort(descending=True).tolist()
    assert [name for name, _ in found.top] == [NAMES[k] for k in order]
    assert [share for _, share in found.top] == pytest.approx(expected[order].tolist(), rel=1e-6)
    assert (found.trained, found.temperature) == (True, 2.0)
    assert "calibrated with temperature 2.00" in str(found)
    assert str(found).splitlines()[0].endswith(NAMES[order[0]])


FACTS = {
    "dataset": "Tabletop (3 classes)",
    "synthetic": True,
    "ranges": {"frames": [16.0, 40.0], "seconds": [1.5, 3.5], "rate": [12.0, 12.0]},
}


@pytest.fixture(scope="module")
def known(weights, tmp_path_factory):
    """As `saved`, of a training on synthetic clips whose ranges are known."""
    folder = tmp_path_factory.mktemp("known")
    tiny(**weights).save_pretrained(folder, card=FACTS)
    (folder / "calibration.json").write_text(json.dumps({"temperature": 2.0}))
    return folder


def test_the_note_says_on_what_the_model_was_trained_and_calibrated(known, saved, weights, frames, tmp_path):
    found = predict(frames, known, **weights).note
    assert found == (
        "Trained on Tabletop (3 classes): synthetic clips, so what it says of a real video is untested. "
        "Probabilities are calibrated with temperature 2.00 on held-out clips of that data, and no other."
    )
    assert predict(frames, saved, **weights).note.startswith("What it was trained on is not known. Probabilities are")
    network = TCA.from_pretrained(known, **weights)
    found = predict(frames, network)
    assert found.trained and found.note.startswith("Trained on Tabletop") and "not calibrated" in found.note
    network.save_pretrained(tmp_path)  # what is known goes with the model
    assert "synthetic" in predict(frames, tmp_path, **weights).note
    real = FACTS | {"dataset": "Something-Something-V2", "synthetic": False}
    network.save_pretrained(tmp_path, card=real)
    assert predict(frames, tmp_path, **weights).note.startswith("Trained on Something-Something-V2. There is no calib")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (slice(0, 1), "one frame, which shows no action"),
        (slice(0, 2), "has 2 frames, and the model reads 16: some were shown to it again"),
        ([3] * 20, "All frames that were read are the same: nothing moves"),
        (slice(0, 20), ""),
        (list(range(20)) * 5, "The video has 100 frames, the training clips 16 to 40 frames"),
    ],
)
def test_the_note_warns_of_videos_without_motion_and_of_other_lengths(known, saved, weights, frames, shape, said):
    for folder in (known, saved):
        note = predict(frames[shape], folder, **weights).note
        if said and ("training" not in said or folder == known):
            assert said in note
        else:
            assert note.endswith("that data, and no other.")


def test_the_note_warns_of_a_file_of_another_rate_and_duration(known, weights, tmp_path):
    notes = {}
    for rate, count in ((12, 30), (60, 30), (12, 600)):
        path = write_video(tmp_path / f"{rate}-{count}.mp4", count, codec="libx264", rate=rate)
        notes[rate, count] = predict(path, known, **weights).note
    assert notes[12, 30].endswith("that data, and no other.")
    assert "0.5 seconds, the training clips 1.5 to 3.5 seconds." in notes[60, 30]
    assert "60 frames a second, the training clips 12 frames a second." in notes[60, 30]
    assert "600 frames, the training clips 16 to 40 frames." in notes[12, 600]
    assert "50 seconds, the training clips" in notes[12, 600]


def test_ranges_of_training_clips_that_cannot_be_are_refused(known, weights, frames, tmp_path):
    shutil.copytree(known, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace("16.0", "160.0"))
    with pytest.raises(CheckpointError, match=r"config.json: .*'frames' from smallest to largest \[160.0, 40.0\]"):
        predict(frames, tmp_path / "model", **weights)


def test_only_as_many_classes_as_asked_for_and_as_there_are(saved, weights, frames):
    assert len(predict(frames, saved, top=2, **weights).top) == 2
    assert sum(share for _, share in predict(frames, saved, top=50, **weights).top) == pytest.approx(1)


def test_random_weights_are_said_to_be_meaningless(frames, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    for given in (model, tmp_path):
        found = predict(frames, given)
        assert not found.trained
        assert "random, so the class is meaningless" in str(found)


def test_a_model_of_unknown_training_is_not_called_trained(frames, weights):
    found = predict(frames, tiny(**weights))
    assert not found.trained
    assert "meaningless unless you trained it" in found.note


def test_a_model_without_calibration_says_so(weights, frames, tmp_path):
    tiny(**weights).save_pretrained(tmp_path)
    found = predict(frames, tmp_path, **weights)
    assert (found.trained, found.temperature) == (True, 1.0)
    assert "not calibrated" in found.note


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mkv", 40, codec="libx264", rate=25, bf="2")


def test_a_file_gives_what_its_frames_give(clip, saved, weights):
    video = read_frames(clip, range(probe(clip).frames))
    found = predict(clip, saved, **weights)
    assert found == predict(video, saved, **weights)
    assert found == tcar.predict(str(clip), str(saved), **weights)


def test_a_phones_video_is_seen_as_it_is_shown(saved, weights, tmp_path, capsys):
    path = write_video(tmp_path / "phone.mp4", 20, codec="libx264", rate=25, rotation=90)
    stored = read_frames(path, range(20), upright=False)
    upright, lying = (predict(frames, saved, **weights) for frames in (np.rot90(stored, 1, axes=(1, 2)).copy(), stored))
    assert upright.top != lying.top
    assert predict(path, saved, **weights) == upright
    command("predict", [str(path), "--model", str(saved), "--as-stored", *(f"--{role.replace('_', '-')}={file}"
                                                             for role, file in weights.items())])  # fmt: skip
    assert capsys.readouterr().out == f"{lying}\n"


def test_a_clip_goes_through_the_full_size_model(clip):
    found = predict(clip, full_size_model())
    assert len(found.top) == 5
    assert "meaningless" in str(found)


def test_one_frame_is_a_video(saved, weights, frames):
    assert len(predict(frames[:1], saved, **weights).top) == 3


@pytest.mark.parametrize(
    "broken",
    [np.zeros((8, 60, 80, 3)), np.zeros((60, 80, 3), np.uint8), np.zeros((0, 60, 80, 3), np.uint8)],
)
def test_frames_of_another_kind_are_refused(broken):
    with pytest.raises(PredictionError, match=r"uint8 frames \[time, height, width, 3\] in RGB expected"):
        predict(broken, "full")


def test_where_the_package_is_installed_a_model_is_to_be_named(tmp_path, monkeypatch, saved, weights, frames):
    monkeypatch.setattr("tcar.ground.project.PACKAGE", tmp_path / "lib" / "tcar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PredictionError, match=r"no trained model comes with the package: name the folder .* model="):
        predict(frames)
    assert len(predict(frames, saved, **weights).top) == len(NAMES)


def test_what_is_missing_is_named(project, saved, weights, frames):
    with pytest.raises(PredictionError, match="runs/demo/model: no trained model; `make paper` makes it"):
        predict(frames)
    with pytest.raises(CheckpointError, match="elsewhere"):
        predict(frames, project / "elsewhere")
    with pytest.raises(VideoError, match=r"nowhere\.mp4: missing"):
        predict("nowhere.mp4", saved, **weights)
    with pytest.raises(PredictionError, match="top is 0"):
        predict(frames, saved, top=0)


@pytest.mark.parametrize("content", ["{}", "no json", '{"temperature": 0}', '{"temperature": "hot"}'])
def test_a_broken_calibration_is_named(weights, frames, tmp_path, content):
    tiny(**weights).save_pretrained(tmp_path)
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(PredictionError, match=r"calibration\.json: .*temperature"):
        predict(frames, tmp_path, **weights)


def test_the_default_model_is_that_of_the_demo(project, saved, weights, frames):
    (project / "runs" / "demo").mkdir(parents=True)
    (project / "runs" / "demo" / "model").symlink_to(saved)
    assert predict(frames, **weights) == predict(frames, saved, **weights)


def test_the_command_prints_classes_or_one_line_of_error(clip, saved, weights, capsys):
    options = [f"--{name.replace('_', '-')}={weight}" for name, weight in weights.items()]
    command("predict", [str(clip), "--model", str(saved), "--top", "1", *options])
    assert capsys.readouterr().out.strip() == str(predict(clip, saved, top=1, **weights)).strip()
    asked = [sys.executable, "-m", "tcar", "predict", "nowhere.mp4", "--model", str(saved), *options]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere.mp4: missing")
    assert len(done.stderr.splitlines()) == 1
