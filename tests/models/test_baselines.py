"""Baselines: each as published, from files as published, refused where they do not fit, and measured like methods."""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_files import coloured_clips
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEForVideoClassification,
)

from tcar.data.ssv2 import DatasetError
from tcar.lab import params, pipeline, plots, results
from tcar.lab.paper import tables
from tcar.lab.params import typed
from tcar.lab.steps import baselines as stage
from tcar.lab.steps.training import places
from tcar.models import settings as names
from tcar.models.baselines import BASELINES, _cast, _timesformer, baseline_cost, create_baseline
from tcar.models.cast import clip_config, videomae_config
from tcar.models.cast_blocks import CASTConfig
from tcar.streams import pretrained
from tcar.streams.packaged import packaged
from tcar.streams.weights import CheckpointError
from tcar.train.clip_tasks import BaselineTask
from tcar.train.tasks import Slice

NAMES = ("red", "blue")
SMALL = TimesformerConfig(
    image_size=32, patch_size=16, num_frames=2, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
    intermediate_size=48,
)  # fmt: skip
MINI = CASTConfig(frames=4, image_size=32, width=24, depth=2, heads=3, adapter_width=5, cross_width=12)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The full-size baselines in a small size, under names of their own."""
    published = {"timesformer_small": "owner/timesformer"}
    monkeypatch.setitem(
        BASELINES, "timesformer_small", _timesformer("timesformer_small", SMALL, crop=True, published=published)
    )
    published = {"cast_small.clip": "owner/clip", "cast_small.videomae": "owner/videomae"}
    monkeypatch.setitem(BASELINES, "cast_small", _cast("cast_small", MINI, crop=True, published=published))
    for name in ("timesformer_small", "cast_small"):
        monkeypatch.setitem(plots.METHODS, name, (name, "#123456"))
        monkeypatch.setitem(names.PUBLISHED, name, BASELINES[name].published)
        for key in BASELINES[name].published:
            monkeypatch.setitem(names.BASELINE_CHECKPOINTS, key, name)
    monkeypatch.setattr(typed, "_Flat", typed.model())


def write_timesformer(folder, names=NAMES, seed=1, kind="safetensors"):
    """A file as on the Hub: weights by their published names, and a config.json that numbers the classes."""
    config = TimesformerConfig.from_dict(SMALL.to_dict() | {"id2label": dict(enumerate(names))})
    torch.manual_seed(seed)
    model = TimesformerForVideoClassification(config).eval()
    folder.mkdir(exist_ok=True)
    if kind == "safetensors":
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return model


def write_experts(folder, classes):
    """The two experts of a small CAST: CLIP's vision model, and a VideoMAE that classifies so many classes."""
    given = {}
    config = replace(MINI, num_classes=classes)
    for part, kind, made in (
        ("clip", CLIPVisionModel, clip_config(config)),
        ("videomae", VideoMAEForVideoClassification, videomae_config(config)),
    ):
        torch.manual_seed(len(part))
        model = pretrained.build(kind, made)
        (folder / part).mkdir()
        save_file(model.state_dict(), folder / part / "model.safetensors", metadata={"format": "pt"})
        (folder / part / "config.json").write_text(json.dumps(model.config.to_dict()))
        given[f"cast_small.{part}"] = str(folder / part)
    return given


def frames(baseline, count=2):
    shape = (count, baseline.frames, baseline.size, baseline.size, 3)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


# --- what is registered


def test_the_published_sizes_and_costs():
    cast, timesformer = (baseline_cost(name, 174) for name in ("cast_b16", "timesformer_vitb16"))
    assert (cast["trained_parameters"], cast["parameters"]) == (45_205_038, 217_228_590)
    assert cast["gflops"] / 2 == pytest.approx(390.5, rel=0.001)
    assert timesformer["trained_parameters"] == timesformer["parameters"] == pytest.approx(121e6, rel=0.01)
    assert timesformer["gflops"] / 2 == pytest.approx(196, rel=0.01)


def test_the_tiny_one_is_tiny_and_every_one_has_a_name_and_a_colour():
    assert all(baseline_cost(name, 174)["parameters"] < 2_500_000 for name in ("cast_tiny", "timesformer_tiny"))
    shown = ("cast_b16", "timesformer_vitb16", "cast_tiny", "timesformer_tiny")
    assert len({plots.colour(name) for name in shown}) == 4


def test_the_tiny_ones_begin_with_the_weights_of_the_package():
    """Read again by other code: the experts of CAST, and all of TimeSformer but its classifier."""
    cast, timesformer = (create_baseline(name, 5, seed=3).model for name in ("cast_tiny", "timesformer_tiny"))
    # The last norm of the spatial expert is trained, as the head's.
    norm = {f"post_layernorm.{key}": value for key, value in cast.head.norm["spatial"].state_dict().items()}
    bodies = {
        "cast_tiny.clip": cast.clip.state_dict() | norm, "cast_tiny.videomae": cast.videomae.state_dict(),
        "timesformer_tiny": timesformer.network.timesformer.state_dict(),
    }  # fmt: skip
    for name, body in bodies.items():
        stored = load_file(packaged(name))
        assert stored.keys() == body.keys()
        assert all(torch.equal(body[key], value.to(body[key].dtype)) for key, value in stored.items())
    assert not any(p.requires_grad for p in (*cast.clip.parameters(), *cast.videomae.parameters()))
    assert all(p.requires_grad for p in timesformer.parameters())
    assert "its temporal expert was trained before on" in create_baseline("cast_tiny", 5).notes[1]


@pytest.mark.parametrize("name", ["cast_tiny", "timesformer_small"])
def test_frames_give_logits_and_the_seed_gives_the_weights(name, tmp_path):
    write_timesformer(tmp_path / "file")
    given = {"timesformer_small": str(tmp_path / "file")} if name == "timesformer_small" else {}
    models = [create_baseline(name, 5, given, seed=seed).model.eval() for seed in (0, 0, 1)]
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())
    assert models[0](frames(BASELINES[name])).shape == (2, 5)
    with pytest.raises(ValueError, match="frames must be"):
        models[0](frames(replace(BASELINES[name], frames=3)))


# --- weights


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_published_timesformer_gives_the_logits_of_transformers(tmp_path, kind):
    published = write_timesformer(tmp_path / "file", kind=kind)
    built = create_baseline("timesformer_small", 2, {"timesformer_small": str(tmp_path / "file")}, untrained=True)
    clips = frames(BASELINES["timesformer_small"])
    pixels = ((clips.double() / 255 - 0.45) / 0.225).permute(0, 1, 4, 2, 3).float()
    with torch.inference_mode():
        torch.testing.assert_close(built.model.eval()(clips), published(pixels).logits)
    assert (built.labels, built.notes) == ({0: "red", 1: "blue"}, ())


def test_all_of_timesformer_is_trained(tmp_path):
    write_timesformer(tmp_path / "file")
    model = create_baseline("timesformer_small", 2, {"timesformer_small": str(tmp_path / "file")}).model
    model(frames(BASELINES["timesformer_small"])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_classifier_of_other_classes_is_replaced_for_training_and_refused_for_scoring(tmp_path):
    published = write_timesformer(tmp_path / "ssv2", names=[f"class {i}" for i in range(174)])
    given = {"timesformer_small": str(tmp_path / "ssv2")}
    built = create_baseline("timesformer_small", 2, given)
    assert built.model.network.classifier.out_features == 2
    body = {k: v for k, v in built.model.network.state_dict().items() if "classifier" not in k}
    assert all(torch.equal(value, published.state_dict()[key]) for key, value in body.items())
    assert built.labels is None
    assert built.notes == (
        "its weights were fine-tuned on Something-Something-V2",
        "its classifier of 174 classes was replaced by a fresh one",
    )
    with pytest.raises(CheckpointError, match=r"no trained classifier of 2 classes.*has 174\).*above 0 to train one"):
        create_baseline("timesformer_small", 2, given, untrained=True)


@pytest.mark.parametrize(("classes", "tuned"), [(174, True), (400, False)])
def test_the_experts_of_cast_are_loaded_and_said_to_know_the_dataset_where_they_do(tmp_path, classes, tuned):
    given = write_experts(tmp_path, classes)
    built = create_baseline("cast_small", 174, given)
    assert built.notes == (("its temporal expert was itself fine-tuned on Something-Something-V2",) if tuned else ())
    filled = built.model.head.classifier.weight
    file = VideoMAEForVideoClassification.from_pretrained(given["cast_small.videomae"]).eval()
    assert torch.equal(built.model.videomae.state_dict()["embeddings.patch_embeddings.projection.weight"],
                       file.state_dict()["videomae.embeddings.patch_embeddings.projection.weight"])  # fmt: skip
    assert (filled.shape == file.classifier.weight.shape and torch.equal(filled, file.classifier.weight)) == tuned
    with pytest.raises(CheckpointError, match="nothing to score as loaded"):  # what its classifier reads is new
        create_baseline("cast_small", 174, given, untrained=True)
    bare = given | {"cast_small.videomae": str(tmp_path / "videomae" / "weights.safetensors")}
    (tmp_path / "videomae" / "model.safetensors").rename(bare["cast_small.videomae"])
    (tmp_path / "videomae" / "config.json").unlink()
    assert create_baseline("cast_small", 174, bare).notes == built.notes


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("cast_b17", {}, "did you mean 'cast_b16'"),
        ("cast_b16", {}, r"set baseline_checkpoints: \{cast_b16.clip: openai/clip-vit-base-patch16, cast_b16.videomae"),
        ("timesformer_vitb16", {}, "timesformer_vitb16: facebook/timesformer-base-finetuned-ssv2"),
        ("cast_small", {"cast_small.clip": "x/y"}, "cast_small.videomae: owner/videomae"),
        ("cast_tiny", {"cast_tiny.clip": "x"}, "cast_tiny has no checkpoint cast_tiny.clip; known are: none"),
        ("timesformer_small", {"timesformer_small": "nowhere/at all"}, "nowhere/at all: no such checkpoint"),
        ("timesformer_small", {"timesformer_small": "nobody/nothing"}, "not in the local cache.*hf download"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_says_why_and_what_to_set(name, given, message):
    with pytest.raises((CheckpointError, ValueError), match=message):
        create_baseline(name, 174, given)


def test_files_that_do_not_fit_are_refused(tmp_path):
    write_timesformer(tmp_path / "file")
    bare = tmp_path / "weights.safetensors"
    (tmp_path / "file" / "model.safetensors").rename(bare)
    with pytest.raises(CheckpointError, match="no config.json with id2label"):
        create_baseline("timesformer_small", 2, {"timesformer_small": str(bare)})
    save_file({"timesformer.embeddings.cls_token": torch.zeros(1, 1, 24)}, tmp_path / "file" / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        create_baseline("timesformer_small", 2, {"timesformer_small": str(tmp_path / "file")})


def test_classes_that_are_numbered_otherwise_are_refused(tmp_path):
    write_timesformer(tmp_path / "file", names=NAMES[::-1])
    clips = coloured_clips(tmp_path, 4)
    asked = params.from_values({
        "baselines": ["timesformer_small"], "baseline_checkpoints": {"timesformer_small": str(tmp_path / "file")},
    })  # fmt: skip
    task = BaselineTask("timesformer_small", {"train": clips, "validation": clips}, NAMES, asked, 0)
    with pytest.raises(DatasetError, match="0 is 'red' here and 'blue' there"):
        task.build(0)


# --- in a run


@pytest.fixture
def run(project, monkeypatch, tmp_path):
    """A run of two classes with clips, whose small TimeSformer is only loaded and whose tiny CAST is trained."""
    clips = coloured_clips(tmp_path, 12)
    found = {"train": clips[:6], "validation": clips[6:8], "test": clips[8:]}
    monkeypatch.setattr(stage, "healthy_clips", lambda run: found)
    monkeypatch.setattr(stage, "class_names", lambda run: list(NAMES))
    write_timesformer(tmp_path / "weights")
    return params.from_values(
        {
            "baselines": ["cast_tiny", "timesformer_small"],
            "baseline_epochs": {"timesformer_small": 0},
            "baseline_checkpoints": {"timesformer_small": "weights"},  # from the project's folder
            "baseline_batch_size": 4,
            "epochs": 2,
            "warmup_epochs": 1,
            "seeds": [0, 1],
            "workers": 2,
            "device": "cpu",
        }
    )


def test_a_run_trains_its_baselines_and_opens_them_again(run, tmp_path, monkeypatch):
    fits = stage.train_baselines(run)
    assert {name: [fit.seed for fit in done] for name, done in fits.items()} == {
        "cast_tiny": [0, 1],
        "timesformer_small": [0],
    }
    record = stage.baseline_record(run, fits)
    results.save(run.results_dir / "training.json", record, params=run, extra={"trainings": places(fits)})
    kept = json.loads((run.results_dir / "training.json").read_text())["baselines"]
    assert kept["timesformer_small"]["epochs"] == 0
    assert kept["timesformer_small"]["converged"] is None
    assert kept["timesformer_small"]["checkpoints"] == {"timesformer_small": "weights"}
    assert [len(curve) for curve in kept["cast_tiny"]["curves"].values()] == [2, 2]

    monkeypatch.setattr(stage, "train", lambda *_: pytest.fail("trained again"))
    opened = stage.trained_baselines(run)
    assert [fit.history for fit in opened["cast_tiny"]] == [fit.history for fit in fits["cast_tiny"]]

    test = stage.healthy_clips(run)["test"]
    ids = [clip.id for clip in test]
    logits, kept = stage.baseline_logits(run, opened, "test", ids)
    assert kept.all() and logits["timesformer_small"][0].shape == (4, 2)
    # As the trainer scores them: the model of the best epoch on the frames of each clip.
    task, fit = stage.baseline_task(run, "cast_tiny", 1), opened["cast_tiny"][1]
    model = task.build(1)
    model.load_state_dict(fit.trained, strict=False)
    with closing(task), torch.no_grad():
        (batch,) = task.batches("test", [Slice([0, 1, 2, 3])], 0, {})
        np.testing.assert_allclose(logits["cast_tiny"][1], model.eval()(*batch.inputs).numpy(), atol=1e-5)

    (tmp_path / "9.webm").unlink()  # a test clip that is gone is gone for every method
    logits, kept = stage.baseline_logits(run, opened, "test", ids)
    assert kept.tolist() == [True, False, True, True]
    assert {len(one) for done in logits.values() for one in done} == {3}

    text = stage.baseline_text(run, opened)
    assert "cast_tiny" not in text
    assert "2 epochs; its spatial expert was trained before on" in text
    assert "timesformer_small: 2 frames of 32 pixels, one view: its middle square; scored as published" in text
    costs = stage.baseline_costs(run, opened)
    assert costs["cast_tiny"]["notes"] == list(create_baseline("cast_tiny", 2).notes)
    assert "trained before" in tables.notes_of(costs)


def test_other_weights_make_the_notebooks_that_use_them_stale(run, tmp_path):
    used = [step.name for step in pipeline.TABLE if tmp_path / "weights" / "config.json" in pipeline._inputs(step, run)]
    assert used == ["03_training", "04_evaluation"]
    assert tmp_path / "weights" / "model.safetensors" in pipeline._inputs(pipeline.TABLE[3], run)
    hub = params.from_values(
        {"baseline_checkpoints": {"timesformer_vitb16": "facebook/timesformer-base-finetuned-ssv2"}}
    )
    assert not [path for path in pipeline._inputs(pipeline.TABLE[3], hub) if "timesformer-base" in path.name]


def test_a_run_without_baselines_has_no_trace_of_them(project):
    run = params.Params(root=project)
    assert stage.train_baselines(run) == stage.baseline_record(run, {}) == {}
    results.save(run.results_dir / "training.json", {}, params=run, extra={"trainings": {}})
    assert stage.trained_baselines(run) == {}
    logits, kept = stage.baseline_logits(run, {}, "test", ["1"])
    assert logits == {} and kept.all()
    assert tables.notes_of({"motion": {}}) == ""
    assert "`baselines` is empty" in stage.baseline_text(run, {})
