"""Controls take one kind of evidence away and leave the rest; the command writes any size of the benchmark."""

import json

import numpy as np
import pytest

from tcar.__main__ import command
from tcar.data import ssv2
from tcar.tabletop import controls
from tcar.tabletop.dataset import load_index, load_truth
from tcar.tabletop.scene import render
from tcar.tabletop.stage import Stage
from tcar.tabletop.templates import FAMILIES

SEED = (5, 0, 2, 1)
SIZE = (160, 120)


def twins(family: str, difficulty: str = "standard"):
    found = FAMILIES[family]
    return found, list(found.draw(Stage("train", list(SEED), difficulty=difficulty)).values())


@pytest.mark.parametrize("control", ["reversed", "shuffled", "frozen"])
def test_time_controls_show_frames_of_the_clip_in_another_order(control):
    family, scenes = twins("up_down")
    whole = render(scenes[0]).frames
    _, controlled = controls.apply(control, scenes[0], family, SEED, *SIZE)
    order = [next(t for t, frame in enumerate(whole) if np.array_equal(frame, shown)) for shown in controlled.frames]
    assert {
        "reversed": order == list(range(len(whole)))[::-1],
        "shuffled": sorted(order) == list(range(len(whole))) != order,
        "frozen": len(set(order)) == 1,
    }[control]
    again = controls.apply(control, scenes[0], family, SEED, *SIZE)[1]
    assert np.array_equal(again.frames, controlled.frames)


def test_the_background_is_what_is_left_without_things_and_hands():
    family, scenes = twins("up_down")
    scene, empty = controls.apply("background", scenes[0], family, SEED, *SIZE)
    whole = render(scenes[0])
    assert scene.items == () and not empty.instances.any()
    untouched = (whole.instances == 0) & (np.abs(whole.frames.astype(int) - empty.frames).max(-1) == 0)
    assert untouched.mean() > 0.5 and np.array_equal(empty.frames[0], empty.frames[-1])


def test_noise_keeps_the_flow_and_hides_the_outline_from_a_single_frame():
    family, scenes = twins("push_pull")
    _, noise = controls.apply("noise", scenes[0], family, SEED, *SIZE)
    whole = render(scenes[0])
    assert np.array_equal(noise.flow(), whole.flow())
    inside = whole.instances > 0
    # the same grey levels in and out: brightness and contrast tell nothing
    assert abs(noise.frames[inside].mean() - noise.frames[~inside].mean()) < 12
    assert abs(noise.frames[inside].std() - noise.frames[~inside].std()) < 12
    assert inside.mean() > 0.03 and np.ptp(noise.frames, axis=-1).max() == 0
    # what moves carries its noise along
    flow, t = whole.flow(), len(whole.frames) // 2
    y, x = np.nonzero(inside[t] & (np.abs(flow[t]).max(-1) > 0.5))
    goal = (np.stack([x, y], 1) + flow[t, y, x]).round().astype(int)
    kept = ((goal >= 0) & (goal < [160, 120])).all(1)
    here = noise.frames[t, y[kept], x[kept], 0].astype(float)
    there = noise.frames[t + 1, goal[kept, 1], goal[kept, 0], 0].astype(float)
    assert np.corrcoef(here, there)[0, 1] > 0.5


def test_a_conflict_keeps_the_action_before_a_still_that_twins_share():
    family, scenes = twins("up_down")
    shown = [controls.apply("conflict", scene, family, SEED, *SIZE)[1] for scene in scenes]
    whole = render(scenes[0])
    inside = whole.instances > 0
    assert np.array_equal(shown[0].frames[inside], whole.frames[inside])
    outside = ~inside.any(0)
    assert (shown[0].frames[:, outside] == shown[0].frames[0, outside]).all()
    assert np.array_equal(shown[0].frames[:, outside], shown[1].frames[:, outside])
    assert np.abs(shown[0].frames[0][outside].astype(int) - whole.frames[0][outside]).mean() > 10


def test_hard_scenes_have_clutter_that_all_twins_share_and_easy_hands_are_still():
    for family in FAMILIES:
        _, scenes = twins(family, "hard")
        clutter = [[i for i in s.items if i.instance.startswith("distractor")] for s in scenes]
        assert all(len(items) == 2 for items in clutter)
        if family not in ("push_pull", "turn_camera", "approach"):  # those mirror or share a moving camera
            assert all(np.array_equal(a.track, b.track) for a, b in zip(clutter[0], clutter[1], strict=True))
    _, scenes = twins("front_behind", "easy")
    hand = next(i for i in scenes[0].items if i.instance == "hand")
    assert np.ptp(hand.track, axis=0).max() == 0


def test_the_command_writes_a_size_goes_on_and_plans(tmp_path, capsys):
    given = ["--clips", "40", "--classes", "45", "43", "42", "40", "--lengths", "16", "--workers", "1"]
    folder = tmp_path / "set"
    assert command("tabletop", [str(folder), *given, "--limit", "6"]) == 0
    early = {path.name: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()}
    assert 6 <= len(early) < 40 and not (folder / "labels.json").exists()
    assert command("tabletop", [str(folder), *given]) == 0
    assert {name: (folder / "videos" / name).stat().st_mtime_ns for name in early} == early
    index = load_index(folder)
    assert len(index) == 40 and "Data sheet" in (folder / "DATASHEET.md").read_text()
    assert {len(load_truth(folder, clip)[1]) for clip in index} == {16}
    assert sum(len(ssv2.load_split(folder, split)) for split in ssv2.SPLITS) == 40
    assert command("tabletop", [str(folder), *given, "--plan"]) == 0
    assert "40 (8 sets of each family in train" in capsys.readouterr().out
    assert command("tabletop", [str(folder), "--classes", "3"]) == 2
    assert "no template for [3]" in capsys.readouterr().err


def test_a_control_is_written_with_its_own_truth_and_fingerprint(tmp_path):
    given = ["--clips", "4", "--classes", "45", "43", "--lengths", "16", "--workers", "1"]
    for control in ("", "frozen"):
        extra = ["--control", control] if control else []
        assert command("tabletop", [str(tmp_path / f"x{control}"), *given, *extra]) == 0
    plain, frozen = (json.loads((tmp_path / n / "fingerprint.json").read_text()) for n in ("x", "xfrozen"))
    assert plain["fingerprint"] != frozen["fingerprint"]
    for clip in load_index(tmp_path / "xfrozen"):
        truth, instances = load_truth(tmp_path / "xfrozen", clip)
        assert (instances == instances[0]).all()
        assert all(frame["labels"] == truth["frames"][0]["labels"] for frame in truth["frames"])
