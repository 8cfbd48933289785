"""The stand-in tasks tell the truth about their scenes, and the same seed trains the same small stream."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tcar.ground import locks
from tcar.ground.errors import ParameterError
from tcar.streams.packaged import BASELINES, LICENCE, packaged, seeds_of
from tcar.streams.registry import create_stream
from tcar.tabletop import assets, pretrain, standin
from tcar.tabletop.scene import render


def test_stand_in_scenes_use_their_own_vocabulary_alone():
    for seed in range(12):
        for scene in (standin.still_scene(seed), standin.clip_scene(seed, 4)):
            assert scene.background.vocabulary == "pretrain"
            for item in scene.items:
                if item.kind == "object":
                    assert item.shape in assets.SHAPES["pretrain"]
                assert item.texture is None or item.texture.pattern in assets.PATTERNS["pretrain"]


def test_dense_labels_describe_what_is_drawn():
    for seed in range(8):
        frame, category, colour, shape, pattern, offset = standin.make_still(seed, 112, 8, detail=4)
        assert frame.shape == (112, 112, 3) and category.shape == (32, 32)
        scene = standin.still_scene(seed)
        ids = render(scene).instances[0]
        # the middles of 32 x 32 sub-patches of 120 x 160 pixels, at most half a pixel off
        middles = ids[np.ix_(((np.arange(32) + 0.5) * 120 / 32).astype(int), ((np.arange(32) + 0.5) * 5).astype(int))]
        assert ((category > 0) == (middles > 0)).all()
        kinds = {i: name.split()[0].split("-")[0] for i, name in enumerate(scene.instances(), 1)}
        for index, kind in ((1, "hand"), (3, "held"), (4, "cloth")):
            meant = np.isin(middles, [i for i, name in kinds.items() if name == kind])
            assert ((category == index) == meant).all(), kind
        filled = shape >= 0
        objects = np.isin(category, (2, 3)).reshape(8, 4, 8, 4).mean((1, 3))
        assert (objects[filled] > 0.1).all() and ((pattern >= 0) == filled).all()
        assert (colour[filled].max(-1) > 0.5).all() and np.abs(offset).max() < 1


def test_clip_flow_is_the_mean_of_the_true_flow():
    clip, flow = standin.make_clip(5, 80, (8, 5, 5))
    assert clip.shape == (16, 80, 80, 3) and flow.shape == (8, 10, 10, 2)
    rendering = render(standin.clip_scene(5), 128, 96)
    full = rendering.flow() * [80 / 128, 80 / 96]
    # the sum over the frame does not depend on how it was pooled, up to the sampling of every third pixel
    assert np.allclose(full[:14].mean((0, 1, 2)), flow[:7].astype(float).mean((0, 1, 2)), atol=0.05)
    assert np.abs(full).max() > 0.5


def test_two_commands_do_not_train_into_one_folder(tmp_path):
    message = f"another command trains streams into it.*held by process {os.getpid()} on"
    with locks.alone(tmp_path / ".lock", RuntimeError, "busy"), pytest.raises(ParameterError, match=message):
        pretrain.train_streams([], tmp_path, [0])


# A batch for one step of training, and a fifth held out.
FEW = {"dinov2_tiny": 80, "i3d_tiny": 40, "cast_tiny.clip": 80, "cast_tiny.videomae": 20, "timesformer_tiny": 80}


def test_every_weight_of_the_package_has_a_task_and_says_how_it_was_trained():
    assert FEW.keys() == pretrain.TASKS.keys() and set(BASELINES) < pretrain.TASKS.keys()
    for name in pretrain.TASKS:
        for seed in seeds_of(name):
            file = packaged(name, seed)
            assert file.stat().st_size < 4e6
            told = json.loads(file.with_suffix(".json").read_text())
            assert told["seed"] == seed and told["held_out_scores"] and told["licence"] == LICENCE


def test_presence_is_what_the_dense_labels_have_anywhere():
    stills = [standin.make_still(seed, 80, 5, detail=4) for seed in range(6)]
    batch = [torch.from_numpy(np.stack(column)) for column in zip(*stills, strict=True)][1:]
    counts = len(standin.CATEGORIES), len(standin.SHAPE_NAMES), len(standin.PATTERN_NAMES)
    truth = torch.zeros(6, sum(counts))
    for row, (_, category, _, shape, pattern, _) in enumerate(stills):
        for start, count, labels in ((0, counts[0], category), (counts[0], counts[1], shape),
                                     (sum(counts[:2]), counts[2], pattern)):  # fmt: skip
            for kind in range(count):
                truth[row, start + kind] = float((labels == kind).any())
    assert 0 < truth.mean() < 1
    right, wrong = (pretrain.presence_loss(20 * (2 * given - 1), batch) for given in (truth, 1 - truth))
    assert right < 1e-6 < 10 < wrong


@pytest.mark.parametrize("name", ["dinov2_tiny", "i3d_tiny"])
def test_the_same_seed_trains_the_same_stream(name, tmp_path, monkeypatch):
    train_twice(name, tmp_path, monkeypatch)
    file = packaged(name, 3).name
    first = load_file(tmp_path / "first" / file)
    stream = create_stream(name, checkpoint=tmp_path / "first" / file)
    assert stream.pretrained and set(stream.backbone.state_dict()) == set(first)
    fresh = create_stream(name, seed=3).backbone.state_dict()
    assert any(not torch.equal(fresh[key], first[key]) for key in first)
    code = json.loads((tmp_path / "first" / file).with_suffix(".json").read_text())["code"]
    assert code == pretrain.training_code(create_stream(name).backbone)


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_seed_trains_the_same_beginning_of_a_baseline(name, tmp_path, monkeypatch):
    train_twice(name, tmp_path, monkeypatch)
    trained = load_file(tmp_path / "first" / packaged(name, 3).name)
    assert {key: value.shape for key, value in trained.items()} == {
        key: value.shape for key, value in load_file(packaged(name)).items()
    }


def train_twice(name, tmp_path, monkeypatch):
    """Two short trainings from one seed, which must be equal."""
    train, scenes, epochs = pretrain.TASKS[name]
    few = FEW[name]
    monkeypatch.setitem(pretrain.TASKS, name, (lambda *_: train(dict.fromkeys(scenes, few), 1, 3), scenes, epochs))
    monkeypatch.setattr(pretrain, "HELD_OUT", 0.2)
    threads = torch.get_num_threads()
    for folder in ("first", "second"):
        pretrain.build(name, tmp_path / folder, seed=3, scale=1.0)
    torch.set_num_threads(threads)
    file = packaged(name, 3).name
    first, second = (load_file(tmp_path / folder / file) for folder in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    provenance = json.loads((tmp_path / "first" / file).with_suffix(".json").read_text())
    assert provenance["seed"] == 3 and provenance["held_out_scores"]
