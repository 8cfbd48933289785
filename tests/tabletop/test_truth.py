"""What the renderer says of a clip is what the rendered folder shows, and every thing plays one part."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tcar import tabletop
from tcar.data.ssv2 import DatasetError
from tcar.tabletop import decisive, event_times, role_masks, roles, truth_at
from tcar.tabletop.controls import apply
from tcar.tabletop.dataset import describe, load_index, load_truth, render_dataset
from tcar.tabletop.family import Family
from tcar.tabletop.scene import Scene, render
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.stage import Stage
from tcar.tabletop.templates import FAMILIES

SIZE = (80, 60)
COUNTS = {"train_sets": 1, "validation_sets": 1, "test_sets": 1}
DRAWN = TabletopSettings(classes=[42, 40, 93, 87, 94, 86, 38, 39], **COUNTS, width=80, height=60, lengths=[16, 20])
# class -> the parts of its things by their names; hands are none of these, and every other thing is a mover
PARTS = {
    18: {"reference": ["object 1"]}, 17: {"reference": ["object 1"]},
    20: {"reference": ["object 1"]}, 19: {"reference": ["object 1"]},
    42: {"reference": ["object 3"], "decoy": ["object 1", "object 2"]},
    40: {"reference": ["object 3"], "decoy": ["object 0", "object 2"]},
    6: {"reference": ["object 0"]}, 171: {"reference": ["object 0"]},
    38: {"screen": ["object 2"]}, 39: {"screen": ["object 2"]},
    68: {"reference": ["object"]},
    106: {"screen": ["object 1"]}, 148: {"screen": ["object 1"]}, 72: {"screen": ["object 1"]},
    82: {"screen": ["object 1"], "reference": ["object"]},
    166: {"reference": ["object 0", "object 1"]}, 167: {"reference": ["object 0", "object 1"]},
    0: {"reference": ["object 0", "object 1"]}, 32: {"reference": ["object 0", "object 1"]},
    44: {"distractor": ["object 1"]}, 41: {"distractor": ["object 1"]},
}  # fmt: skip


def told(family: Family, scene: Scene) -> tuple[dict, np.ndarray]:
    rendering = render(scene, *SIZE)
    return describe(scene, rendering, "1") | {"family": family.name}, rendering.instances


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return render_dataset(tmp_path_factory.mktemp("tabletop"), DRAWN, seed=2, workers=1)


def clips_of(root, family: str) -> list[str]:
    return [clip for clip, row in load_index(root).items() if row["set"] == f"test-{family}-0"]


@pytest.mark.parametrize("difficulty", ["standard", "hard"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_instance_of_every_family_plays_one_part(family, difficulty):
    scenes = family.draw(Stage("train", [5, 1], 16, difficulty, number=1))
    for index, scene in scenes.items():
        truth, instances = told(family, scene)
        names = {i["id"]: i["name"] for i in truth["instances"]}
        found = {role: [names[i] for i in ids] for role, ids in roles(truth).items()}
        assert tuple(found) == tabletop.ROLES
        assert sorted(name for part in found.values() for name in part) == sorted(names.values())
        assert found["hand"] == [n for n in names.values() if n.startswith("hand")] != []
        strewn = [n for n in names.values() if n.startswith("distractor")]
        assert len(strewn) == (2 if difficulty == "hard" else 0)
        expected = {role: PARTS.get(index, {}).get(role, []) for role in ("reference", "decoy", "screen", "distractor")}
        expected["distractor"] = strewn + expected["distractor"]
        if family.name == "many_movers":
            expected["decoy"] = [n for n in names.values() if n.startswith("object") and n not in scene.moving]
            assert len(expected["decoy"]) == 3 and len(found["mover"]) == 2
        assert {role: found[role] for role in expected} == expected
        assert set(found["mover"]) <= set(scene.moving)
        if scene.moving:
            seen = np.isin(instances, [i for i, n in names.items() if n in scene.moving])
            masks = role_masks(truth, instances)
            assert not (seen & ~(masks["mover"] | masks["hand"] | masks["reference"])).any()


def test_role_masks_part_what_is_seen_among_them():
    family = FAMILIES["closer_away"]
    truth, instances = told(family, family.draw(Stage("train", [5, 1], 16))[42])
    masks = role_masks(truth, instances)
    assert np.array_equal(sum(mask.astype(int) for mask in masks.values()), (instances > 0).astype(int))
    mover = next(i["id"] for i in truth["instances"] if i["name"] == "object 0")
    assert np.array_equal(masks["mover"], instances == mover) and masks["mover"].any()
    assert not masks["screen"].any()


def test_a_family_that_is_none_is_named():
    with pytest.raises(ValueError, match="did you mean 'push_pull'"):
        roles({"family": "pushpull", "instances": [], "moving": []})


def test_what_decides_closer_and_away_are_the_movers_that_exchange_their_colours(root):
    for clip in clips_of(root, "closer_away"):
        truth, instances = load_truth(root, clip)
        names = {i["name"]: i["id"] for i in truth["instances"]}
        found = decisive(root, clip, DRAWN)
        exchanged = np.isin(instances, [names["object 0"], names["object 1"]])
        assert found.shape == instances.shape and found.any()
        # soft edges reach a pixel further than the mask, which has what is more than half covered
        wide = np.zeros_like(exchanged)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                wide |= np.roll(exchanged, (dy, dx), (1, 2))
        assert not (found & ~wide).any()
        assert found[exchanged].mean() > 0.9


def test_what_decides_collide_and_pass_comes_after_the_screen(root):
    for clip in clips_of(root, "collide_pass"):
        found = decisive(root, clip, DRAWN)
        half = len(found) // 2
        assert not found[: half + 1].any() and found[-1].any()


@pytest.mark.parametrize("family", ["closer_away", "collide_pass", "push_pull"])
def test_twins_are_told_by_the_same_pixels_which_are_those_of_the_drawing(root, family):
    for clip in clips_of(root, family):
        row = load_index(root)[clip]
        truth, twin = load_truth(root, clip)[0], load_truth(root, row["twin"])[0]
        split, _, number = row["set"].split("-")
        stage = Stage(split, row["seed"], (16, 20), number=int(number))
        scenes = FAMILIES[family].draw(stage)
        one, other = (render(scenes[t["class"]], *SIZE).frames.astype(int) for t in (truth, twin))
        found = decisive(root, clip, DRAWN)
        assert np.array_equal(found, np.abs(one - other).sum(-1) > 0)
        assert np.array_equal(found, decisive(root, row["twin"], DRAWN))


def test_a_reversal_is_told_where_a_clip_differs_from_its_own_end(root):
    clip = clips_of(root, "push_pull")[0]
    found = decisive(root, clip, DRAWN)
    assert np.array_equal(found, found[::-1]) and found.any()


def test_a_control_is_drawn_as_its_folder_has_it(tmp_path):
    drawn = replace(DRAWN, classes=[45, 43], control="noise")
    root = render_dataset(tmp_path, drawn, workers=1)
    clip, row = next(iter(load_index(root).items()))
    found = decisive(root, clip, drawn)
    family, number = FAMILIES["up_down"], int(row["set"].split("-")[2])
    scenes = family.draw(Stage(row["split"], row["seed"], (16, 20), number=number))
    one, other = (apply("noise", scenes[c], family, tuple(row["seed"]), *SIZE)[1].frames for c in (45, 43))
    assert np.array_equal(found, (one != other).any(-1))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"width": 160, "height": 120}, "height is 60, not 120, its width is 80, not 160"),
    ({"lengths": [32]}, "frames are (16|20), not 32"),
    ({"difficulty": "hard"}, "other things are seen at"),
    ({"control": "reversed"}, "other things are seen at")])
def test_other_settings_are_refused_rather_than_drawn(root, wrong, message):
    clip = clips_of(root, "push_pull")[0]
    with pytest.raises(DatasetError, match=message):
        decisive(root, clip, replace(DRAWN, **wrong))


def test_truth_of_what_is_not_tabletop_says_so(root, tmp_path):
    with pytest.raises(DatasetError, match="no clip '999' among the 24 of this Tabletop"):
        decisive(root, "999", DRAWN)
    with pytest.raises(FileNotFoundError, match="no Tabletop dataset"):
        decisive(tmp_path, "1")


def test_a_mask_at_times_and_events_in_them(root):
    mask = np.zeros((4, 1, 1), bool)
    mask[2] = True
    assert truth_at(mask, np.array([0, 0.49, 0.5, 0.74, 0.75, 1])).ravel().tolist() == [0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"times are in \[0, 1\]"):
        truth_at(mask, np.array([0.5, 1.1]))
    truth = load_truth(root, clips_of(root, "collide_pass")[0])[0]
    times = event_times(truth)
    assert list(times) == ["approach", "part"]
    assert times["part"][0] == 0.5 and 0 < times["approach"][0] < 0.5 < times["part"][1] < 1
    # what an event names as its last frame is in it, and no event goes beyond the clip
    clip = {"frames": [{}] * 4, "events": [{"name": "a", "start": 1, "end": 2}, {"name": "b", "start": -1, "end": 4}]}
    assert event_times(clip) == {"a": (0.25, 0.75), "b": (0, 1)}


def test_the_room_stays_cheap_to_enter():
    code = "import sys, tcar.tabletop.settings; print(sorted({'numpy', 'av', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'rules'"):
        tabletop.rules  # noqa: B018
