"""Trainings that read clips: what a view is, what is trained and what stays frozen, and what a broken clip changes."""

import dataclasses
import gc
import json
import multiprocessing
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from bright import extract_one, in_this_process
from clip_files import coloured_clips
from crews import BatchedCrew, InlineCrew
from token_task import Recorder

from tcar.__main__ import command
from tcar.data.clip_views import ClipViews
from tcar.data.frame_cache import FrameCache
from tcar.data.video import read_segments, resize
from tcar.data.views import AugmentConfig, SegmentView
from tcar.fusion.kinds import FusionConfig
from tcar.lab import params, results
from tcar.models.tca import TCA
from tcar.serve.predict import predict
from tcar.streams.registry import create_stream
from tcar.train.clip_tasks import BaselineTask, StreamTask
from tcar.train.processes import Processes
from tcar.train.stepping import Stepper
from tcar.train.tasks import Slice, TokenTask
from tcar.train.tokens import StoredTokens
from tcar.train.trainer import train
from tcar.train.watch import TrainingError

NAMES = ("Pushing [something] from left to right", "Pushing [something] from right to left")
GRID = [2, 2, 2]
SMALL = {
    "epochs": 2, "warmup_epochs": 0, "batch_size": 4, "learning_rate": 0.01, "log_steps": 1, "device": "cpu",
    "semantic_frames": 4, "motion_frames": 8, "semantic_grid": GRID, "motion_grid": GRID, "fusion_width": 16,
    "heads": 2, "fusion_blocks": 1, "workers": 2, "baseline_batch_size": 4, "baseline_learning_rate": 0.01,
    "ablation_heads": [2], "task": "clips",
    **dict.fromkeys(("ablation_semantic_grids", "ablation_motion_grids", "ablation_windows", "ablation_positions",
                     "ablation_directions", "ablation_fusion_blocks", "ablation_self_blocks"), []),
}  # fmt: skip


def run(**changes):
    return params.from_values(SMALL | changes)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    made = coloured_clips(tmp_path_factory.mktemp("clips"), 16)
    return {"train": made[:11], "validation": made[11:]}


@pytest.fixture
def inline(monkeypatch):
    """Read in this process, where a test is not about processes."""
    monkeypatch.setattr("tcar.data.loader.Crew", InlineCrew)


def stepper(task) -> Stepper:
    torch.manual_seed(0)
    return Stepper(task, Processes(task.run, task.partly_used))


def views(**augment) -> ClipViews:
    return ClipViews((2, 4), 32, False, AugmentConfig(32, (1.0, 1.0), **augment), {0: 1, 1: 0}, 3)


def test_scoring_sees_the_middles_of_the_whole_frame(clips):
    clip = clips["train"][0]
    frames, label = views(flip=1.0, erase=1.0)((clip, 0))
    for part, count in ((frames[:2], 2), (frames[2:], 4)):
        assert np.array_equal(part, resize(read_segments(clip.path, count), 32))
    assert label == clip.label


def test_views_from_the_cache_are_those_of_decoding(clips, tmp_path, monkeypatch):
    plain, cache = views(flip=0.5, erase=0.5), FrameCache.open(tmp_path, 10**9)
    cached = dataclasses.replace(plain, cache=cache)
    wanted = [plain((clip, epoch)) for epoch in (0, 1, 2) for clip in clips["train"]]
    assert int((cache.folder / "used").read_text()) == 0
    found = [cached((clip, 0)) for clip in clips["train"]]
    monkeypatch.setattr("tcar.data.frame_cache.Video", None)  # what follows is read, not decoded
    found += [cached((clip, epoch)) for epoch in (1, 2) for clip in clips["train"]]
    for (frames, label), (same, as_well) in zip(found, wanted, strict=True):
        assert np.array_equal(frames, same) and label == as_well


def test_a_view_is_made_of_clip_and_epoch_and_a_mirrored_one_changes_its_class(clips):
    make, first, second = views(flip=0.5), *clips["train"][:2]
    seen = {(clip.id, epoch): make((clip, epoch)) for clip in (first, second) for epoch in range(1, 9)}
    again = make((second, 5))
    assert np.array_equal(again[0], seen[second.id, 5][0]) and again[1] == seen[second.id, 5][1]
    labels = [seen[first.id, epoch][1] for epoch in range(1, 9)]
    assert set(labels) == {0, 1}
    mirrored = views(flip=1.0)((first, 1))
    plain = views(flip=0.0)((first, 1))
    assert (mirrored[1], plain[1]) == (1 - first.label, first.label)
    close = np.abs(mirrored[0][:, :, ::-1].astype(int) - plain[0]).mean()
    assert close < 1 < np.abs(mirrored[0].astype(int) - plain[0]).mean()


def test_frozen_stays_frozen_and_adapters_learn(clips, inline):
    asked = run(semantic_adapters=1, adapter_width=4, contrastive_weight=0.1, order_weight=0.1, mixup=0.4)
    made = stepper(StreamTask(clips, NAMES, asked, 0))
    before = {name: value.clone() for name, value in made.learner.state_dict().items()}
    for epoch in (1, 2):
        slices = made.slices(epoch)
        batches = made.task.batches("train", [part for step in slices for part in step], epoch, {})
        for number, part in enumerate(slices):
            found = made.step([next(batches) for _ in part], number + len(slices) * (epoch - 1), epoch)
    assert made.learner.terms == ["classes", "contrastive", "order"] and min(found.terms) > 0
    moved = {name for name, value in made.learner.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= {alias for alias in before if ".backbone." not in alias}
    assert {"model.fusion.", "model.semantic.adapters.", "order_head."} <= {
        prefix for prefix in ("model.fusion.", "model.semantic.adapters.", "order_head.")
        if any(name.startswith(prefix) for name in moved)
    }  # fmt: skip
    assert all(not p.requires_grad for name, p in made.learner.named_parameters() if ".backbone." in name)


def gradient(task) -> list[torch.Tensor]:
    made, seen = stepper(task), []
    made.optimiser.optimizer.register_step_pre_hook(
        lambda *_: seen.append([p.grad.clone() for p in made.trained.values() if p.grad is not None])
    )
    made.step(list(task.batches("train", made.slices(1)[0], 1, {})), 0, 1)
    return seen[0]


@pytest.mark.parametrize("kind", ["streams", "baseline"])
def test_blocks_computed_twice_give_the_same_gradients(clips, inline, kind):
    found = []
    for checkpointing in (False, True):
        asked = run(semantic_adapters=2, adapter_width=4, checkpointing=checkpointing)
        made = StreamTask(clips, NAMES, asked, 0) if kind == "streams" else BaselineTask(
            "cast_tiny", clips, NAMES, asked, 0)  # fmt: skip
        found.append(gradient(made))
    assert len(found[0]) == len(found[1]) > 10
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_broken_clip_is_left_out_reported_and_changes_no_other(clips, tmp_path, request):
    """Read by worker processes; the training then reads in this one."""
    half = tmp_path / "half.webm"
    half.write_bytes(clips["train"][3].path.read_bytes()[:300])
    damaged = dict(clips, train=list(clips["train"]))
    damaged["train"][3] = dataclasses.replace(clips["train"][3], id="half", path=half)
    asked = run(mixup=0.5)
    slices = [Slice([2, 3, 4, 5], 0), Slice([3], 4)]
    hurt = list(StreamTask(damaged, NAMES, asked, 0).batches("train", slices, 1, {}))
    request.getfixturevalue("inline")
    whole = list(StreamTask(clips, NAMES, asked, 0).batches("train", slices, 1, {}))
    assert (hurt[0].places, hurt[0].rows, hurt[0].broken) == ([2, 4, 5], [0, 2, 3], {"half": "truncated"})
    assert torch.equal(hurt[0].inputs[0], whole[0].inputs[0][[0, 2, 3]])
    assert (hurt[1].places, hurt[1].rows, len(hurt[1].inputs[0])) == ([], [], 1)
    recorder = Recorder()
    found = train(StreamTask(damaged, NAMES, asked, 0), tmp_path / "fit", [recorder])
    assert found.broken == {"half": "truncated"} and found.reason == "finished"
    assert [row["step"] for row in recorder.steps] == [1, 2, 3, 4, 5, 6]


def test_a_clip_asked_for_twice_is_in_both_slices_however_its_readings_come_back(clips, monkeypatch):
    slices, found = [Slice([2, 3, 4, 5], 0), Slice([3], 4), Slice([], 5), Slice([3, 3], 5)], []
    for crew in (InlineCrew, BatchedCrew):
        monkeypatch.setattr("tcar.data.loader.Crew", crew)
        found.append(list(StreamTask(clips, NAMES, run(), 0).batches("train", slices, 1, {})))
    for one, other in zip(*found, strict=True):
        assert (one.places, one.rows, one.broken) == (other.places, other.rows, other.broken)
        assert torch.equal(one.inputs[0], other.inputs[0]) and torch.equal(one.labels, other.labels)
    assert [batch.places for batch in found[0]] == [part.places for part in slices]
    assert torch.equal(found[0][0].inputs[0][1], found[0][1].inputs[0][0])


def test_training_and_validation_share_processes_that_end_with_the_task(clips):
    task = StreamTask(clips, NAMES, run(workers=1), 0)
    seen = []
    for epoch in (1, 2):
        for split in ("train", "validation"):
            list(task.batches(split, [Slice([0, 1]), Slice([2])], epoch, {}))
            seen.append([child.pid for child in multiprocessing.active_children()])
    (worker,) = seen[0]
    assert seen == [[worker]] * 4
    del task
    gc.collect()
    assert not psutil.pid_exists(worker)


@pytest.mark.parametrize(("device", "cuda", "pin"), [("cpu", True, False), ("auto", True, True), ("auto", False, False),
                                                     ("cuda:1", True, True)])  # fmt: skip
def test_batches_are_page_locked_for_a_gpu_alone(clips, monkeypatch, device, cuda, pin):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert StreamTask(clips, NAMES, run(device=device), 0).loader.pin is pin


def extracted(asked, made, root):
    return {
        role: extract_one(
            made, partial(create_stream, getattr(asked.streams, role), pretrained=True), root / "runs/x/features",
            SegmentView(frames), grid=GRID, workers=1, views=2,
        )
        for role, frames in (("semantic", 4), ("motion", 8))
    }


@pytest.fixture(scope="module")
def prepared(clips, tmp_path_factory):
    """A run whose audit and extraction are done, of sixteen clips."""
    root = tmp_path_factory.mktemp("project")
    (root / "pyproject.toml").write_text('[project]\nname = "tcar"\n')
    data, made = root / "runs" / "x" / "data", [*clips["train"], *clips["validation"]]
    (data / "videos").mkdir(parents=True)
    for clip in made:
        (data / "videos" / f"{clip.id}.webm").write_bytes(clip.path.read_bytes())
    texts = [name.replace("[", "").replace("]", "") for name in NAMES]
    (data / "labels.json").write_text(json.dumps({text: str(index) for index, text in enumerate(texts)}))
    entries = [{"id": c.id, "label": "", "template": NAMES[c.label], "placeholders": []} for c in made]
    (data / "train.json").write_text(json.dumps(entries[:11]))
    (data / "validation.json").write_text(json.dumps(entries[11:]))
    (data / "test.json").write_text(json.dumps([{"id": entry["id"]} for entry in entries[11:]]))
    (data / "test-answers.csv").write_text("".join(f"{c.id};{texts[c.label]}\n" for c in made[11:]))
    results.write(root / "runs/x/results/audit.json", {"quarantined": [], "classes": texts})
    asked = run(name="x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcar.features.extraction.isolated_map", in_this_process)
        stores = extracted(asked, made, root)
    results.write(root / "runs/x/results/extractors.json", {"stores": {r: s.root.name for r, s in stores.items()}})
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in SMALL.items())
    (root / "x.yaml").write_text(f"name: x\nseeds: [0]\n{lines}")
    return root, stores, made


def test_tokens_are_those_of_the_stores_and_views_change_with_the_epoch(prepared):
    _, stores, made = prepared
    asked, pair = run(), (stores["semantic"], stores["motion"])
    fusion = params.from_values(SMALL).fusion.settings
    config = FusionConfig(**fusion, semantic_width=pair[0].width, motion_width=pair[1].width, num_classes=2)
    disk = TokenTask(config, StoredTokens.of(*pair, made[:11]), StoredTokens.of(*pair, made[11:]), asked, 0)
    part = Slice([7, 2, 9], 0)
    (ours,) = disk.batches("validation", [Slice([1, 0])], 0, {})
    for store, (values,) in zip(pair, ours.inputs, strict=True):
        assert np.array_equal(values.numpy(), store.load([made[12].id, made[11].id]))
    seen = [next(disk.batches("train", [part], epoch, {})).inputs[0][0] for epoch in range(1, 7)]
    assert len({tokens.numpy().tobytes() for tokens in seen}) > 1
    assert torch.equal(seen[2], next(disk.batches("train", [part], 3, {})).inputs[0][0])
    kept = {pair[0].load([made[7].id], view)[0].tobytes() for view in (0, 1)}
    assert {tokens[0].numpy().tobytes() for tokens in seen} == kept


@pytest.mark.parametrize("task", ["tokens", "clips"])
def test_the_command_trains_keeps_a_model_and_goes_on(prepared, monkeypatch, capsys, task, inline):
    root, _, _ = prepared
    monkeypatch.chdir(root)
    assert command("train", ["x.yaml", f"task={task}", "checkpoint_steps=2"]) == 0
    said = capsys.readouterr().out
    assert "seed 0: best of 2 epochs" in said
    name = "cross_attention" if task == "tokens" else "streams-and-fusion"
    (folder,) = (root / "runs/x/trainings").glob(f"{name}-seed0-*")
    assert str(folder) in said
    model = TCA.from_pretrained(folder / "model")
    assert model.config.class_names == tuple(name.replace("[", "").replace("]", "") for name in NAMES)
    assert {"run.json", "steps.csv", "epochs.csv"} <= {path.name for path in folder.iterdir()}
    kept = json.loads((folder / "model" / "calibration.json").read_text())
    answer = predict(np.zeros((8, 48, 64, 3), np.uint8), folder / "model")
    assert answer.trained and answer.temperature == kept["temperature"] and "not calibrated" not in answer.note
    # Other parameters are another training; what is there stays.
    assert command("train", ["x.yaml", f"task={task}", "checkpoint_steps=2", "learning_rate=0.02"]) == 0
    assert len(list((root / "runs/x/trainings").glob(f"{name}-seed0-*"))) == 2 and folder.is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epohcs=3"], "unknown parameter 'epohcs', did you mean 'epochs'"),
        (["epochs"], "'epochs' is not of the form key=value"),
        (["task=baseline"], "name the one to train"),
        (["name=y"], "audit.json: no such result"),
    ],
)
def test_the_command_says_what_is_wrong(prepared, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(prepared[0])
    assert command("train", ["x.yaml", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("make", [StreamTask, partial(BaselineTask, "cast_tiny")])
def test_a_class_without_its_mirror_image_cannot_be_flipped(clips, make):
    names = ["Pushing [something] from left to right", "Holding [something]"]
    with pytest.raises(TrainingError, match="flip is 0.5, and 'Pushing.*left to right' in a mirror is none of the 2"):
        make(clips, names, run(flip=0.5), 0)
    make(clips, names, run(flip=0.0), 0)
