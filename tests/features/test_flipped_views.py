"""Mirrored views in a feature store: which ones they are, what a training makes of their classes, what is refused."""

import json
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from bright import FRAMES, Brightness, extract_one, seven_clips

from tcar.data.ssv2 import Clip
from tcar.data.views import SegmentView
from tcar.features import FeatureError, FeatureStore, verify
from tcar.fusion.kinds import FusionConfig
from tcar.lab import params, results
from tcar.lab.steps import streams as steps
from tcar.lab.steps.clips import healthy_clips
from tcar.lab.steps.fits import tokens_of
from tcar.streams.grids import pool_tokens
from tcar.streams.registry import create_stream
from tcar.train.tasks import Batch, Slice, TokenTask
from tcar.train.tokens import StoredTokens
from tcar.train.watch import TrainingError

pytestmark = pytest.mark.usefixtures("extraction_inline")

RIGHT, LEFT, STILL = NAMES = ("Pushing something from left to right", "Pushing something from right to left", "Holding")
SWAPPED = {0: 1, 1: 0, 2: 2}
VIEWS = 4


def block(path: Path, label: int, mirrored: bool = False) -> Path:
    """Encode 20 frames of a block on a darker, uneven ground; it brightens, and moves as the class says."""
    ground = np.linspace(20, 60, 64, dtype=np.uint8)[None, :, None] + np.zeros((48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"crf": "10", "cpu-used": "8"}
        for number in range(20):
            image, place = ground.copy(), 8 + 2 * (number, 19 - number, 0)[label]
            image[12:24, place : place + 8] = 130 + 6 * number
            image = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def blocks(folder: Path, mirrored: bool = False) -> list[Clip]:
    folder.mkdir()
    return [
        Clip(str(n), block(folder / f"{n}.webm", n % 3, mirrored), n % 3, NAMES[n % 3], "", ()) for n in range(12)
    ]


def cells(frames: np.ndarray) -> np.ndarray:
    """The tokens of `Brightness`, without torch."""
    t, h, w, _ = frames.shape
    return (frames / 255).reshape(2, t // 2, 3, h // 3, 4, w // 4, 3).mean((1, 3, 5)).reshape(24, 3)


def task(semantic: FeatureStore, motion: FeatureStore, clips: list[Clip], **changes) -> TokenTask:
    fusion = FusionConfig(semantic_width=3, motion_width=3, num_classes=3, width=8, heads=2, blocks=1)
    tokens = StoredTokens.of(semantic, motion, clips, NAMES)
    return TokenTask(fusion, tokens, tokens, params.from_values(changes), 0)


def ready(training: TokenTask, batch: Batch) -> tuple[torch.Tensor, ...]:
    """The numbers of a batch, as a model gets them."""
    return training.ready(batch.inputs, torch.device("cpu"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return blocks(tmp_path_factory.mktemp("videos") / "plain")


@pytest.fixture
def make(clips, tmp_path):
    """Extract four views, half of them mirrored; another stream has other weights and twice the frames."""

    def made(flip: float = 0.5, motion: bool = False, **changes) -> FeatureStore:
        frames = 2 * FRAMES if motion else FRAMES
        build = partial(Brightness, 0.5 if motion else 1.0)
        settings = {"views": VIEWS, "batch_clips": 5} | changes
        return extract_one(clips, build, tmp_path / "stores", SegmentView(frames, flip), **settings)

    return made


def test_a_mirrored_view_has_the_tokens_of_the_mirrored_video(make, clips, tmp_path):
    """Those of the mirrored frames, number for number; those of a file encoded from mirrored frames, but for noise."""
    store, files = make(), blocks(tmp_path / "mirrored", mirrored=True)
    seen = []
    for clip, other in zip(clips, files, strict=True):
        for view in range(VIEWS):
            flipped, tokens = bool(store.flipped([clip.id], view)[0]), store.load([clip.id], view)[0]
            straight = SegmentView(FRAMES)(clip, view, 0)
            np.testing.assert_allclose(tokens, cells(straight[:, :, ::-1] if flipped else straight), atol=1e-3)
            if flipped:
                np.testing.assert_allclose(tokens, cells(SegmentView(FRAMES)(other, view, 0)), atol=0.03)
                assert np.abs(tokens - cells(straight)).max() > 0.1
            seen.append((view, flipped))
    assert {flipped for view, flipped in seen if view} == {False, True}
    assert (0, True) not in seen
    np.testing.assert_array_equal(store.coordinates, make(flip=0.0).coordinates)


def test_a_view_is_mirrored_by_clip_number_and_seed_alone():
    names = [str(n) for n in range(600)]
    views = SegmentView(8, 0.3), SegmentView(16, 0.3), SegmentView(8, 0.4)
    drawn = [np.array([[view.flipped(name, n, 5) for n in range(6)] for name in names]) for view in views]
    assert np.array_equal(drawn[0], drawn[1])
    assert not drawn[0][:, 0].any()
    assert abs(drawn[0][:, 1:].mean() - 0.3) < 4 * (0.3 * 0.7 / 3000) ** 0.5  # four standard deviations
    assert np.all(drawn[0] <= drawn[2])  # a higher probability mirrors these views and more
    assert np.abs(np.corrcoef(drawn[0][:, 1:].T) - np.eye(5)).max() < 0.2  # the views of a clip are drawn apart
    assert not np.array_equal(drawn[0], [[views[0].flipped(name, n, 6) for n in range(6)] for name in names])
    assert all(SegmentView(8, 1.0).flipped("7", n, 0) == (n > 0) for n in range(9))
    with pytest.raises(ValueError, match=r"flip must lie in \[0, 1\], got 1.5"):
        SegmentView(8, 1.5)


def test_a_training_reads_mirrored_views_under_the_class_of_the_mirror_image(make, clips):
    """Which view a batch holds, and whether it is mirrored, is told from the tokens alone."""
    stores, met = (make(), make(motion=True)), set()
    training, order = task(*stores, clips), [7, 2, 9, 0, 5, 4, 8]
    views = [SegmentView(frames) for frames in (FRAMES, 2 * FRAMES)]
    frames = {(place, view, n): view(clips[place], n, 0) for place in order for view in views for n in range(VIEWS)}
    for epoch in range(1, 9):
        batch = next(training.batches("train", [Slice(order)], epoch, {}))
        for row, place in enumerate(order):
            found = set()
            for tokens, view, scale in zip(ready(training, batch), views, (1.0, 0.5), strict=True):
                shown = {(n, way): cells(frames[place, view, n][:, :, ::way]) * scale
                         for n in range(VIEWS) for way in (1, -1)}  # fmt: skip
                errors = {name: np.abs(tokens[row].numpy() - wanted).max() for name, wanted in shown.items()}
                found.add(min(errors, key=errors.get))
                assert min(errors.values()) < 1e-3
            ((_, way),) = found  # both streams see the same view, the same way round
            label = clips[place].label
            assert batch.labels[row] == (SWAPPED[label] if way < 0 else label)
            met.add((label, way))
    assert met == {(label, way) for label in range(3) for way in (1, -1)}
    scored = next(training.batches("validation", [Slice(order)], 0, {}))
    assert scored.labels.tolist() == [clips[place].label for place in order]
    assert torch.equal(scored.inputs[0][0], torch.from_numpy(stores[0].load([clips[place].id for place in order])))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mirrored_view_brings_its_new_class_into_a_mixture(make, clips, kind):
    training = task(make(flip=1.0), make(flip=1.0, motion=True), clips, **{kind: 1.0})
    order, partly = [0, 3, 6, 9], 0  # all of "from left to right"
    for epoch in range(1, 9):
        batch = next(training.batches("train", [Slice(order)], epoch, {}))
        inputs = ready(training, batch)
        _, targets = training.mixed(batch, inputs, batch.labels, epoch, 0)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        first_views = training.splits["train"].semantic.load([clips[place].id for place in order])
        straight = [np.array_equal(tokens, first) for tokens, first in zip(inputs[0], first_views, strict=True)]
        shown = [0 if first else 1 for first in straight]
        assert batch.labels.tolist() == shown
        for row, (own, other) in enumerate(zip(shown, (shown[1], shown[0], shown[3], shown[2]), strict=True)):
            assert set(targets[row].nonzero().flatten().tolist()) <= {own, other}
            partly += own != other and 0 < targets[row, 1] < 1
    assert partly  # a straight view was mixed with a mirrored one, and the mass was shared


@pytest.fixture
def prepared(project, clips):
    """A run with mirrored views, audited, and the clips of its splits."""
    data = project / "runs" / "x" / "data"
    (data / "videos").mkdir(parents=True)
    for clip in clips:
        (data / "videos" / f"{clip.id}.webm").write_bytes(clip.path.read_bytes())
    (data / "labels.json").write_text(json.dumps({text: str(index) for index, text in enumerate(NAMES)}))
    entries = [{"id": c.id, "label": "", "template": NAMES[c.label], "placeholders": []} for c in clips]
    for split, part in (("train", entries[:6]), ("validation", entries[6:9]), ("test", entries[9:])):
        (data / f"{split}.json").write_text(json.dumps(part))
    (data / "test-answers.csv").write_text("".join(f"{c.id};{NAMES[c.label]}\n" for c in clips[9:]))
    results.write(project / "runs/x/results/audit.json", {"quarantined": [], "classes": list(NAMES)})
    return params.from_values({
        "name": "x", "views": 3, "view_flip": 0.5, "view_seed": 4, "semantic_frames": 4, "motion_frames": 8,
        "semantic_grid": [2, 2, 2], "motion_grid": [2, 2, 2], "fusion_width": 16, "heads": 2, "batch_clips": 5,
        "ablation_heads": [2], "ablation_semantic_grids": [], "ablation_motion_grids": [], "device": "cpu",
        "workers": 1,
    })  # fmt: skip


def test_from_parameters_to_a_batch(prepared):
    """The two streams of the demo, as `tcar extract` and `tcar train` use them."""
    found = healthy_clips(prepared)
    stores = steps.extract(prepared, found)
    results.write(prepared.results_dir / "extractors.json", {"stores": {r: s.root.name for r, s in stores.items()}})
    tokens = tokens_of(prepared, "train", "validation")
    fusion = FusionConfig(**tokens["train"].widths, num_classes=3, width=16, heads=2, blocks=1)
    training = TokenTask(fusion, *tokens.values(), prepared, 0)
    clips, met = found["train"], set()
    streams = {role: create_stream(getattr(prepared.streams, role), pretrained=True) for role in steps.ROLES}
    for epoch in range(1, 9):
        batch = next(training.batches("train", [Slice(list(range(6)))], epoch, {}))
        inputs = ready(training, batch)
        for row, clip in enumerate(clips):
            kept = [stores["motion"].load([clip.id], view)[0] for view in range(3)]
            (view,) = [number for number, tokens in enumerate(kept) if np.array_equal(inputs[1][row], tokens)]
            mirrored = bool(stores["motion"].flipped([clip.id], view)[0])
            assert batch.labels[row] == (SWAPPED[clip.label] if mirrored else clip.label)
            if (clip.id, view) in met:
                continue
            met.add((clip.id, view))
            for tokens, frames, stream in zip(inputs, (4, 8), streams.values(), strict=True):
                seen = np.ascontiguousarray(SegmentView(frames)(clip, view, 4)[:, :, :: -1 if mirrored else 1])
                wanted = pool_tokens(stream(torch.from_numpy(seen)[None]), (2, 2, 2)).values[0].flatten(0, 1)
                assert (tokens[row] - wanted).norm() < 5e-3 * wanted.norm()
    flipped = {bool(stores["semantic"].flipped([name], view)[0]) for name, view in met}
    assert flipped == {True, False} and len(met) > 12


def test_streams_that_disagree_are_refused(make, clips):
    semantic, motion = make(), make(motion=True, view_seed=1)
    with pytest.raises(TrainingError, match=r"view \d of clip \d+ is mirrored in one of them alone") as caught:
        task(semantic, motion, clips)
    assert str(semantic.root) in str(caught.value) and str(motion.root) in str(caught.value)
    with pytest.raises(TrainingError, match="in one of them alone"):
        task(make(flip=0.0), make(motion=True), clips)
    task(make(flip=0.0), make(flip=0.0, motion=True, view_seed=1), clips)
    fewer = make(motion=True, views=2)  # views that only one store has are never read
    assert task(semantic, fewer, clips).splits["train"].views == 2


def test_classes_that_a_mirror_makes_unknown_are_refused(make, clips):
    stores = make(), make(motion=True)
    with pytest.raises(TrainingError, match="'Pushing something from left to right' in a mirror is none of the 3"):
        StoredTokens.of(*stores, clips, [RIGHT, "Pulling", STILL])
    with pytest.raises(TrainingError, match="0 class names cannot tell .* classes up to 2"):
        StoredTokens.of(*stores, clips)
    plain = make(flip=0.0), make(flip=0.0, motion=True)
    assert StoredTokens.of(*plain, clips).labels_of([0, 1], [1, 2]).tolist() == [0, 1]


def test_what_a_training_was_made_of_includes_what_a_mirror_changes(make, clips):
    def digests(flip: float) -> list[str]:
        stores = make(flip), make(flip, motion=True)
        return [StoredTokens.of(*stores, clips, names).digest for names in (NAMES, (STILL, LEFT, RIGHT))]

    one, other = digests(0.5)
    assert one != other
    assert len({*digests(0.0)}) == 1


def test_the_store_says_which_views_are_mirrored(make, clips):
    store, view = make(), SegmentView(FRAMES, 0.5)
    mirrored = [[view.flipped(clip.id, number, 0) for number in range(VIEWS)] for clip in clips]
    for number in range(VIEWS):
        np.testing.assert_array_equal(store.flipped(view=number), [views[number] for views in mirrored])
    np.testing.assert_array_equal(store.flipped(["7", "0"], [3, 1]), [mirrored[7][3], mirrored[0][1]])
    with pytest.raises(FeatureError, match="clip 99 has no features"):
        store.flipped(["99"])
    with pytest.raises(FeatureError, match="views 0 to 3 of each clip, not 4"):
        store.flipped(["0"], 4)


def test_a_store_without_mirrored_views_knows_nothing_of_them(make):
    store = make(flip=0.0)
    described = json.loads((store.root / "store.json").read_text())
    assert described["flipped"] == store.flips == {}
    assert described["made"]["sampling"] == "segment middles"
    assert store.key != make().key and make(flip=0.25).key != make().key
    assert not store.flipped(view=3).any()


def test_mirrors_that_were_tampered_with_are_noticed(make):
    root = make().root
    assert verify(root) == []
    described = json.loads((root / "store.json").read_text())
    described["flipped"].popitem()
    (root / "store.json").write_text(json.dumps(described))
    assert verify(root) == ["store.json: its content has changed"]
    with pytest.raises(FeatureError, match=r"store.json: its content has changed; delete the folder and extract again"):
        FeatureStore.open(root)


@pytest.mark.parametrize("batch_clips", [7, 1])
def test_tokens_of_one_store_have_one_place_each(tmp_path, batch_clips):
    """A crop of frames of different shapes sees different parts of them, within a batch or across batches."""
    (tmp_path / "videos").mkdir()
    clips = seven_clips(tmp_path / "videos")  # 128 x 96 and 160 x 96
    build = partial(create_stream, "dinov2_tiny", seed=1, fit="crop")
    make = partial(extract_one, build=build, root=tmp_path / "stores", view=SegmentView(2), grid=(2, 2, 2),
                   batch_clips=batch_clips)  # fmt: skip
    with pytest.raises(FeatureError, match="dinov2_tiny: frames of different shapes .* give the stream fit='squash'"):
        make(clips)
    alike = [clip for clip in clips if int(clip.id) % 3]
    np.testing.assert_allclose(make(alike).coordinates[0], [0.25, 0.25, 0.5 - 0.25 * 96 / 160], atol=1e-6)
