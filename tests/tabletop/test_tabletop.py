"""Tabletop keeps the promises its twins make: what should be equal is equal, what differs is one factor."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tcar.data import ssv2, video
from tcar.ground import locks
from tcar.tabletop import assets, dataset, probes, templates
from tcar.tabletop.dataset import load_index, load_truth, render_dataset
from tcar.tabletop.family import GROUPS
from tcar.tabletop.scene import render
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.stage import Stage
from tcar.tabletop.templates import FAMILIES, LABELS

REVERSALS = [(93, 87), (94, 86), (45, 43), (37, 36), (6, 171), (109, 47), (106, 148), (166, 167), (0, 32), (44, 41)]
SEEDS = (3, 11)
SMALL = TabletopSettings(
    classes=[42, 40, 109, 47, 74, 68], train_sets=2, validation_sets=1, test_sets=1
)
AVX2 = "*AVX2" in cv2.getCPUFeaturesLine().split()  # a question mark behind it where the processor has none


def scenes_with(index: int, seed: int, number: int = 0):
    family = next(f for f in FAMILIES.values() if index in f.classes)
    return family.draw(Stage("train", [seed, 5], number=number))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return render_dataset(tmp_path_factory.mktemp("tabletop"), SMALL, seed=4, workers=2)


def test_every_group_has_its_classes_once():
    indices = [i for f in FAMILIES.values() for i in f.classes]
    assert sorted(indices) == sorted(LABELS) and len(indices) == len(set(indices)) == 34
    assert {pair.group for f in FAMILIES.values() for pair in f.pairs} == set(GROUPS)


def test_texts_are_those_of_the_real_list():
    """The digest was taken of these entries of the dataset's own labels.json."""
    entries = json.dumps(sorted(LABELS.items()), separators=(",", ":")).encode()
    assert hashlib.sha256(entries).hexdigest()[:16] == "4f233eeb985cee99"


@pytest.mark.parametrize("pair", REVERSALS, ids=str)
def test_reversal_twins_are_exact_reversals(pair):
    scenes = scenes_with(pair[0], SEEDS[0])
    forward, backward = render(scenes[pair[0]]).frames, render(scenes[pair[1]]).frames
    assert np.array_equal(forward, backward[::-1])
    assert not np.array_equal(forward, backward)


@pytest.mark.parametrize("seed", SEEDS)
def test_closer_and_away_differ_in_colour_alone(seed):
    scenes = scenes_with(42, seed)
    one, other = render(scenes[42]), render(scenes[40])
    assert np.array_equal(one.instances, other.instances)
    assert np.array_equal(one.flow(), other.flow())
    # the coloured mover really nears the reference in one and leaves it in the other
    for scene, nears in ((scenes[42], True), (scenes[40], False)):
        mover = next(i for i in scene.items if i.instance == scene.moving[0])
        reference = next(i for i in scene.items if i.instance == "object 3")
        gap = np.abs(mover.track[:, 0] - reference.track[:, 0])
        assert (gap[-1] < gap[0]) == nears and abs(gap[-1] - gap[0]) > 14


@pytest.mark.parametrize("seed", SEEDS)
def test_collide_and_pass_have_one_flow(seed):
    scenes = scenes_with(38, seed)
    collide, passing = render(scenes[38]), render(scenes[39])
    movers = [np.isin(r.instances, [1, 2]) for r in (collide, passing)]
    assert np.array_equal(*movers)
    half = len(collide.frames) // 2
    step = np.arange(len(collide.frames) - 1) != half - 1  # the exchange itself is hidden, see below
    assert np.allclose(collide.flow()[step], passing.flow()[step])
    assert not movers[0][half - 1: half + 1].any()
    assert np.array_equal(collide.frames[0], passing.frames[0])
    assert not np.array_equal(collide.frames[-1], passing.frames[-1])


@pytest.mark.parametrize("classes", [(109, 47, 74, 68), (106, 148, 72, 82)])
def test_pretence_never_shows_in_the_hand_s_silhouette(classes):
    scenes = scenes_with(classes[0], SEEDS[0])
    hands = []
    for index in classes:
        scene, rendering = scenes[index], render(scenes[index])
        hand = 1 + scene.instances().index("hand")
        thing = 1 + scene.instances().index("object")
        item = next(i for i in scene.items if i.instance == "object")
        held = item.shown & (item.depth > 3)
        hands.append((rendering.instances == hand) | ((rendering.instances == thing) & held[:, None, None]))
    assert all(np.array_equal(hands[0], other) for other in hands[1:])


def test_flow_carries_each_pixel_to_its_place_in_the_next_frame():
    for index in (93, 44, 166):
        rendering = render(scenes_with(index, SEEDS[1])[index])
        flow = rendering.flow(step=3)
        t = len(flow) // 2
        y, x = np.nonzero(rendering.instances[t])
        goal = np.stack([x, y], 1) + flow[t, y, x]
        inside = ((goal >= 0) & (goal <= [159, 119])).all(1)
        landed = rendering.instances[t + 3][tuple(goal[inside].round().astype(int).T[::-1])]
        assert (landed == rendering.instances[t, y, x][inside]).mean() > 0.85
        assert np.abs(flow[t]).max() > 1


def test_what_appears_or_goes_has_no_flow():
    """Something that is put into a box is drawn no more; it must not seem to leap."""
    scenes = scenes_with(106, SEEDS[0])
    for scene in scenes.values():
        hand = next(i for i in scene.items if i.instance == "hand")
        fastest = np.linalg.norm(np.diff(hand.track[:, :2], axis=0), axis=1).max()
        assert np.linalg.norm(render(scene).flow(), axis=-1).max() < 1.5 * fastest + 0.5


def test_vocabularies_share_nothing():
    shapes = [set(s) for s in assets.SHAPES.values()]
    patterns = [set(p) for p in assets.PATTERNS.values()]
    for sets in (shapes, patterns):
        assert sum(map(len, sets)) == len(set().union(*sets))
    rng = np.random.default_rng(0)
    hues = [{assets.sample_texture(v, rng).first for _ in range(200)} for v in assets.VOCABULARIES]
    assert all(not hues[a] & hues[b] for a in range(4) for b in range(a))


def test_is_read_by_the_reader_of_the_real_dataset(small):
    labels = ssv2.load_labels(small)
    assert list(labels) == sorted(labels) and len(labels) == 6
    counts = {split: len(ssv2.load_split(small, split)) for split in ssv2.SPLITS}
    assert counts == {"train": 12, "validation": 6, "test": 6}
    index = load_index(small)
    for split in ssv2.SPLITS:
        for clip in ssv2.load_split(small, split):
            assert labels[index[clip.id]["class"]] == clip.label
            assert index[clip.id]["split"] == split


def test_twins_share_a_set_and_a_split(small):
    index = load_index(small)
    for clip, row in index.items():
        twin = index[row["twin"]]
        assert twin["twin"] == clip and twin["class"] != row["class"]
        assert (twin["set"], twin["split"], twin["seed"]) == (row["set"], row["split"], row["seed"])


def test_boxes_bound_the_masks_and_the_video_shows_them(small):
    clip = ssv2.load_split(small, "train")[0]
    truth, instances = load_truth(small, clip.id)
    info = video.probe(clip.path)
    assert (info.frames, info.height, info.width) == instances.shape and info.rate == 12
    for t in (0, len(instances) // 2):
        for label in truth["frames"][t]["labels"]:
            rows, columns = np.nonzero(instances[t] == label["instance"])
            box = label["box2d"]
            assert (box["x1"], box["y1"], box["x2"], box["y2"]) == (
                columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    # the decoded video is the rendering, up to what the codec loses
    plan = next(p for p in dataset.plan_sets(dataset.chosen_families([42, 40, 109, 47, 74, 68]),
                                             {"train": 2, "validation": 1, "test": 1}, 4) if clip.id in p.ids)
    family = FAMILIES[plan.family]
    drawn = render(dataset.draw(plan)[family.classes[plan.ids.index(clip.id)]]).frames
    decoded = video.read_frames(clip.path, list(range(info.frames)))
    assert np.abs(decoded.astype(int) - drawn).mean() < 6


def test_workers_change_nothing_and_an_interrupted_run_goes_on(small, tmp_path):
    again = render_dataset(tmp_path / "again", SMALL, seed=4, workers=1)
    videos = sorted(p.name for p in (small / "videos").iterdir())
    assert videos == sorted(p.name for p in (again / "videos").iterdir())
    for name in videos:
        assert (small / "videos" / name).read_bytes() == (again / "videos" / name).read_bytes()

    first = next((again / "ground_truth").glob("[0-9]*.json"))
    kept = {p: p.stat().st_mtime_ns for p in (again / "videos").iterdir()}
    plan = json.loads((again / "fingerprint.json").read_text())
    (again / "fingerprint.json").write_text(json.dumps(plan | {"complete": False}))
    for sibling in [c for c, row in load_index(again).items() if row["set"] == load_index(again)[first.stem]["set"]]:
        (again / "ground_truth" / f"{sibling}.json").unlink()
    render_dataset(again, SMALL, seed=4, workers=1)
    changed = [p for p, time in kept.items() if p.stat().st_mtime_ns != time]
    assert first.exists() and 0 < len(changed) < len(kept)


def test_two_commands_do_not_render_into_one_folder(tmp_path, small):
    message = f"another command renders into this folder.*held by process {os.getpid()} on"
    with locks.alone(tmp_path / ".lock", RuntimeError, "busy"), pytest.raises(ssv2.DatasetError, match=message):
        render_dataset(tmp_path, replace(SMALL, classes=[42, 40]))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with locks.alone(small / ".lock", RuntimeError, "busy"):  # what is complete is opened whoever else is there
        assert render_dataset(small, SMALL, seed=4) == small


@pytest.mark.skipif(not AVX2, reason="OpenCV rounds otherwise without AVX2")
def test_a_seed_gives_the_same_frames_on_every_machine(small):
    """The digests were written down once: drawing, encoding and decoding may depend on the versions alone."""
    drawn, decoded = hashlib.sha256(), hashlib.sha256()
    for family in FAMILIES.values():
        for scene in family.draw(Stage("test", [7, 3])).values():
            drawn.update(render(scene).frames)
    for path in sorted((small / "videos").iterdir()):
        decoded.update(video.read_frames(path, list(range(video.probe(path).frames))))
    assert (drawn.hexdigest()[:16], decoded.hexdigest()[:16]) == ("dd0e207ad0971d3a", "4391109739fdf849")


def test_another_seed_gives_other_clips(small, tmp_path):
    other = render_dataset(tmp_path, SMALL, seed=5, workers=1)
    sizes = [sorted(p.stat().st_size for p in (root / "videos").iterdir()) for root in (small, other)]
    assert sizes[0] != sizes[1]


def test_every_family_has_as_many_sets_as_the_others():
    plans = dataset.plan_sets(list(FAMILIES.values()), {"train": 3, "validation": 1, "test": 2}, 0)
    counts = Counter((plan.family, plan.split) for plan in plans)
    assert counts == {(f, s): n for f in FAMILIES for s, n in (("train", 3), ("validation", 1), ("test", 2))}


@pytest.mark.parametrize(("wrong", "message"), [
    ({"classes": [3]}, "no template"),
    ({"classes": [109, 47]}, "add"), ({"width": 200}, "4:3"), ({"lengths": [25]}, "even"),
    ({"control": "revresed"}, "reversed"), ({"difficulty": "harder"}, "hard")])
def test_bad_requests_name_the_parameter_and_the_fix(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        render_dataset(tmp_path, replace(SMALL, **{"classes": [], **wrong}))


def test_forced_choice_is_one_half_without_evidence():
    correct = probes._forced_choice(np.zeros((4, 2)), ["a", "b"], list("abab"), list("baba"))
    assert correct.tolist() == [0.5] * 4
    sure = probes._forced_choice(np.log([[0.9, 0.1], [0.9, 0.1]]), ["a", "b"], ["a", "b"], ["b", "a"])
    assert sure.tolist() == [1.0, 0.0]


def test_motion_starts_no_earlier_in_an_original_than_in_its_reversal():
    starts, ends = zip(*((s.start, 1 - s.end) for s in (Stage("train", [i]) for i in range(400))), strict=True)
    assert abs(np.mean(starts) - np.mean(ends)) < 0.01
    assert templates.class_groups()[38] == "what and where"


@pytest.mark.parametrize(("number", "count"), [(0, 3), (1, 5), (2, 9), (3, 3)])
def test_many_movers_exchange_the_colours_of_two_lanes_that_go_opposite_ways(number, count):
    scenes = scenes_with(114, SEEDS[0], number)
    putting, taking = scenes[114], scenes[146]
    one, other = render(putting), render(taking)
    assert putting.variant == f"{count} movers" and np.array_equal(one.instances, other.instances)
    assert np.array_equal(one.flow(), other.flow())
    assert len(putting.moving) == len(taking.moving) == {3: 1, 5: 2, 9: 3}[count]
    for scene, way in ((putting, 1), (taking, -1)):
        things = [item for item in scene.items if item.kind == "object"]
        assert len(things) == count and len({(item.shape, item.size) for item in things}) == 1
        for item in things:
            steps = np.diff(item.track[:, 1])
            assert (item.texture != assets.PUCK) == (item.instance in scene.moving)
            assert item.instance not in scene.moving or np.sign(np.median(steps)) == way
            # a thing changes edges unseen, and goes through the whole picture at least once
            assert (np.abs(steps) > 60).sum() >= 1 and np.abs(np.median(steps)) * scene.frames > 120


def test_a_lane_of_many_movers_is_as_often_near_as_far_whichever_way_it_goes():
    """Nearness, place and start are drawn alike for all lanes, so that no frame tells the way of the coloured one."""
    nearest, starts = [], []
    for seed in range(300):
        scene = FAMILIES["many_movers"].draw(Stage("train", [seed], number=0))[114]
        things = [item for item in scene.items if item.kind == "object"]
        coloured = next(item for item in things if item.instance in scene.moving)
        nearest.append(coloured.depth[0] == max(item.depth[0] for item in things))
        starts.append(coloured.track[0, 1])
    assert abs(np.mean(nearest) - 1 / 3) < 0.09  # three standard deviations
    assert abs(np.mean(starts) - 60) < 8


@pytest.mark.parametrize("index", [93, 45, 37, 44])
def test_where_a_hand_is_at_first_tells_no_more_than_where_it_is_at_last(index):
    """Over many scenes the first place and the last one differ by nothing, though the thing between them has moved."""
    family = next(f for f in FAMILIES.values() if index in f.classes)
    ends = []
    for seed in range(200):
        scene = family.draw(Stage("train", [seed, 1]))[index]
        hand = next(item for item in scene.items if item.instance.startswith("hand"))
        ends.append(hand.track[-1, :2] - hand.track[0, :2])
    assert (np.abs(np.mean(ends, 0)) < 3.5 * np.std(ends, 0) / len(ends) ** 0.5).all()


@pytest.mark.parametrize("index", [166, 0])
def test_the_hand_of_who_films_rests_on_the_screen(index):
    scene = scenes_with(index, SEEDS[1])[index]
    matrices = render(scene).affines[:, 1 + scene.instances().index("hand")]
    background = render(scene).affines[:, 0]
    size = np.linalg.norm(matrices[:, :, 0], axis=1)
    assert np.ptp(size) < 1e-6 and (np.ptp(matrices[:, :, 2], axis=0) < 4).all()  # a hand trembles
    assert np.ptp(background, axis=0).max() > 10


@pytest.mark.parametrize("pair", [(18, 17), (20, 19)])
def test_relations_have_one_flow(pair):
    scenes = scenes_with(pair[0], SEEDS[0])
    one, other = (render(scenes[index]) for index in pair)
    assert np.allclose(one.flow(), other.flow(), atol=1e-5)
    held = [next(i for i in scenes[index].items if i.instance == "object 0").track for index in pair]
    assert np.array_equal(*held)
