import errno
import json
import os
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from bright import FRAMES, GRID, Brightness, clip, contents, in_this_process, seven_clips
from torch import nn
from videos import write_broken, write_video

from tcar.__main__ import main
from tcar.data.sampling import segment_indices
from tcar.data.ssv2 import Clip
from tcar.data.video import Video, VideoError, read_segments
from tcar.data.workers import Failure
from tcar.features import FeatureError, FeatureStore, Wanted, extract, extract_together
from tcar.features.batches import Extractor
from tcar.features.views import SegmentView
from tcar.streams.grids import Tokens
from tcar.streams.registry import create_stream


class Rescaled(Brightness):
    """The same name and weights, other code."""

    def forward(self, frames):
        tokens = super().forward(frames)
        return Tokens(tokens.values * 1.1, tokens.coordinates, None, tokens.grid)


def forgetful() -> nn.Module:
    return Brightness(float(torch.rand(())))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return seven_clips(tmp_path_factory.mktemp("videos"))


def expected(clips: list[Clip]) -> np.ndarray:
    """Cell means without torch, straight from the frames."""
    tokens = []
    for entry in clips:
        frames = read_segments(entry.path, FRAMES).astype(np.float64) / 255
        t, h, w, _ = frames.shape
        tokens.append(frames.reshape(2, 2, 3, h // 3, 4, w // 4, 3).mean((1, 3, 5)).reshape(24, 3))
    return np.stack(tokens)


@pytest.fixture(scope="module")
def store(clips, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcar.features.extraction.isolated_map", in_this_process)
        return extract(clips, Brightness(), GRID, FRAMES, tmp_path_factory.mktemp("store"), batch_clips=3)


def test_tokens_are_those_of_the_sampled_frames(clips, store):
    tokens = store.load([entry.id for entry in clips])
    assert (tokens.dtype, tokens.shape, store.width, store.grid) == (np.float16, (7, 24, 3), 3, GRID)
    np.testing.assert_allclose(tokens, expected(clips), atol=1e-3)
    np.testing.assert_allclose(store.coordinates[[0, 23]], [[1 / 4, 1 / 6, 1 / 8], [3 / 4, 5 / 6, 7 / 8]], atol=1e-6)


def test_clips_come_in_the_order_asked_for(clips, store):
    np.testing.assert_array_equal(store.load(["5", "0", "5"]), store.load()[[5, 0, 5]])
    assert store.ids == [entry.id for entry in clips]
    assert store.load([]).shape == (0, 24, 3)


def test_the_numbers_do_not_depend_on_the_workers(clips, store, tmp_path):
    """The store was made in this process, with one thread."""
    other = extract(clips, partial(Brightness, 1.0), GRID, FRAMES, tmp_path, workers=2, batch_clips=3)
    assert other.key == store.key
    assert contents(other) == contents(store)


def test_a_complete_store_is_opened_and_not_made_again(clips, store, extraction_inline):
    before = {path: path.stat().st_mtime_ns for path in store.root.iterdir()}
    again = extract(clips, Brightness(), GRID, FRAMES, store.root.parent, workers=1, batch_clips=3)
    assert {path: path.stat().st_mtime_ns for path in again.root.iterdir()} == before
    np.testing.assert_array_equal(np.load(store.root / "tokens.npy"), store.load(list("0123456")))


@pytest.mark.parametrize(
    "change", ["nothing", "weights", "grid", "frames", "batch", "clips", "order", "quarantine", "repaired"]
)
def test_whatever_makes_the_tokens_changes_the_key(clips, store, tmp_path, extraction_inline, change):
    chosen = {"clips": clips[:6], "order": clips[::-1]}.get(change, list(clips))
    if change == "repaired":
        chosen[3] = Clip("3", write_video(tmp_path / "3.webm", 20, width=160, height=96), 0, "", "", ())
    other = extract(
        chosen,
        Brightness(0.5 if change == "weights" else 1.0),
        (1, 3, 4) if change == "grid" else GRID,
        8 if change == "frames" else FRAMES,
        tmp_path,
        batch_clips=4 if change == "batch" else 3,
        quarantine=["2"] if change == "quarantine" else (),
    )
    assert (other.key == store.key) == (change == "nothing")
    assert other.root.name == f"brightness-{other.key[:16]}"


def test_broken_and_quarantined_clips_are_left_out_and_named(clips, tmp_path, extraction_inline):
    broken = {reason: clip(path) for reason, path in write_broken(tmp_path).items()}
    mixed = [*clips[:2], *broken.values(), *clips[2:4]]
    store = extract(mixed, Brightness(), GRID, FRAMES, tmp_path / "store", workers=2, batch_clips=2,
                    quarantine={"1": "blurred"})  # fmt: skip
    assert store.ids == ["0", "2", "3"]
    assert store.broken == {"1": "blurred"} | {entry.id: reason for reason, entry in broken.items()}
    assert json.loads((store.root / "store.json").read_text())["broken"] == store.broken
    np.testing.assert_allclose(store.load(), expected([clips[0], clips[2], clips[3]]), atol=1e-3)
    with pytest.raises(FeatureError, match="clip 1 has no features .* blurred"):
        store.load(["0", "1"])
    with pytest.raises(FeatureError, match="clip 99 has no features .* not among the clips"):
        store.load(["99"])


def test_a_run_that_dies_is_continued(clips, store, tmp_path, monkeypatch):
    """The worker is killed in its second batch; the first is taken over as it is."""

    def killed(function, items, **_):
        for number, batch in enumerate(items):
            dies = isinstance(function, Extractor) and batch.number == 1
            yield number, Failure("crashed", "exit code -9") if dies else function(batch)

    monkeypatch.setattr("tcar.features.extraction.isolated_map", killed)
    with pytest.raises(FeatureError, match="crashed on batch 1 .* each of its clips can be read"):
        extract(clips, Brightness(), GRID, FRAMES, tmp_path, batch_clips=3)
    folder = next(tmp_path.iterdir())
    with pytest.raises(FeatureError, match="no complete feature store"):
        FeatureStore.open(folder)
    made = []

    def noted(function, items, **_):
        for number, item in in_this_process(function, items):
            made.append(items[number].number)
            yield number, item

    monkeypatch.setattr("tcar.features.extraction.isolated_map", noted)
    resumed = extract(clips, Brightness(), GRID, FRAMES, tmp_path, batch_clips=3)
    assert resumed.root == folder
    assert made == [1, 2]
    assert contents(resumed) == contents(store)


def test_half_a_batch_does_not_count(clips, store, tmp_path, monkeypatch, extraction_inline):
    """The disk is full halfway through the second batch."""
    sync, calls = os.fsync, []

    def fail(file):
        if "tokens.npy" in os.readlink(f"/proc/self/fd/{file}"):
            calls.append(file)
            if len(calls) == 2:
                size = os.fstat(file).st_size
                os.ftruncate(file, size // 2)
                os.ftruncate(file, size)
                raise OSError(errno.ENOSPC, "no space left")
        sync(file)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"no space left.*tokens\.npy"):
        extract(clips, Brightness(), GRID, FRAMES, tmp_path, batch_clips=3)
    monkeypatch.undo()
    monkeypatch.setattr("tcar.features.extraction.isolated_map", in_this_process)
    resumed = extract(clips, Brightness(), GRID, FRAMES, tmp_path, batch_clips=3)
    np.testing.assert_array_equal(resumed.load(), store.load())


def test_a_store_made_by_other_code_is_kept_until_it_is_to_be_made_again(clips, store, tmp_path, extraction_inline):
    plainly = partial(extract, clips, Brightness(), GRID, FRAMES, tmp_path, batch_clips=3)
    made = extract(clips, Rescaled(), GRID, FRAMES, tmp_path, batch_clips=3)
    before = contents(made)
    # 1.1 times the tokens of now: the store has to change by 1 - 1 / 1.1 of its size.
    with pytest.raises(FeatureError, match=r"first clip, 0, comes out 9\.\d+% differently \(0\.5% may be\).*--remake"):
        plainly()
    assert contents(made) == before and len(list(tmp_path.iterdir())) == 1

    (made.root / "notes.txt").write_text("mine")
    with pytest.raises(FeatureError, match=r"notes\.txt"):
        plainly(remake=True)
    assert contents(made) == before | {"notes.txt": b"mine"}
    (made.root / "notes.txt").unlink()
    again = plainly(remake=True)
    assert again.root == made.root and [path.name for path in tmp_path.iterdir()] == [made.root.name]
    assert contents(again) == contents(store)
    kept = again.root.stat().st_ino
    assert plainly(remake=True).root.stat().st_ino == kept  # the flag alone deletes nothing


@pytest.mark.usefixtures("extraction_inline")
def test_the_command_makes_a_store_of_other_code_again_when_asked(clips, project, monkeypatch, capsys):
    (project / "p.yaml").write_text("name: t\nsemantic_grid: [2, 3, 4]\nsemantic_frames: 4\nbatch_clips: 3\n")
    found = {"train": clips[:3], "validation": clips[3:5], "test": clips[5:]}
    monkeypatch.setattr("tcar.lab.commands.extract.healthy_clips", lambda run: found)
    for made, arguments, status in ((Rescaled, [], 0), (Brightness, [], 2), (Brightness, ["--remake"], 0)):
        monkeypatch.setattr("tcar.streams.registry.create_stream", lambda *_, made=made, **__: made())
        assert main(["extract", "p.yaml", "--role", "semantic", *arguments]) == status
        assert ("--remake" in capsys.readouterr().err) == (status == 2)
    (store,) = (project / "runs" / "t" / "features").iterdir()
    np.testing.assert_allclose(FeatureStore.open(store).load(), expected(clips), atol=1e-3)


def test_a_clip_that_kills_its_reader_is_set_aside(clips, tmp_path, monkeypatch):
    def mortal(function, items, **_):
        for number, batch in enumerate(items):
            kills = any(entry.id == "1" and entry.id not in batch.broken for entry in batch.clips)
            yield number, Failure("crashed", "exit code -11") if kills else function(batch)

    monkeypatch.setattr("tcar.features.extraction.isolated_map", mortal)
    store = extract(clips[:5], Brightness(), GRID, FRAMES, tmp_path, batch_clips=3)
    assert store.broken == {"1": "reading it crashed"}
    np.testing.assert_allclose(store.load(), expected([clips[0], *clips[2:5]]), atol=1e-3)


def test_the_stream_in_this_process_gives_the_same(clips, store, tmp_path):
    """The way of a GPU: workers decode, this process computes."""
    other = extract(clips, Brightness(), GRID, FRAMES, tmp_path, workers=1, batch_clips=3, device="cpu:0")
    assert contents(other) == contents(store)


class Decodings:
    """Counts how often the file of each clip is opened."""

    def __init__(self, monkeypatch):
        self.opened, enter = Counter(), Video.__enter__

        def counted(video):
            self.opened[video.path.stem] += 1
            return enter(video)

        monkeypatch.setattr(Video, "__enter__", counted)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_streams_extracted_together_decode_once_and_make_the_stores_they_make_alone(
    clips, tmp_path, monkeypatch, extraction_inline, device
):
    """The second stream has more frames; the damage of one clip lies where only this one looks, another is all bad."""
    wanted = [Wanted(Brightness(), GRID, FRAMES), Wanted(Brightness(0.5), (2, 6, 2), 8, view=SegmentView(8, 0.5)),
              Wanted(Brightness(2.0), GRID, FRAMES)]  # fmt: skip
    damaged = clip(tmp_path / "7.webm")
    damaged.path.write_bytes(clips[5].path.read_bytes())
    mixed, settings = [*clips, damaged, clip(tmp_path / "8.webm")], {"batch_clips": 4, "views": 2, "device": device}
    read = Video.read

    def failing(video, indices, size=None):
        if video.path == damaged.path and 22 in indices:  # of 24 frames, a middle of 8 segments and of no 4
            raise VideoError(video.path, "undecodable", "frame 22")
        return read(video, indices, size)

    monkeypatch.setattr(Video, "read", failing)
    monkeypatch.setattr(
        SegmentView, "places", lambda view, name, count, number, seed: segment_indices(count, view.frames)
    )
    alone = [
        extract(mixed, one.stream, one.grid, one.frames, tmp_path / "alone", view=one.view, **settings)
        for one in wanted
    ]
    assert [set(store.broken) for store in alone] == [{"8"}, {"7", "8"}, {"8"}]
    first = extract(mixed, wanted[1].stream, wanted[1].grid, 8, tmp_path / "together", view=wanted[1].view, **settings)
    kept = (first.root / "tokens.npy").stat().st_mtime_ns
    decodings = Decodings(monkeypatch)
    together = extract_together(mixed, wanted, tmp_path / "together", **settings)
    assert [contents(store) for store in together] == [contents(store) for store in alone]
    assert (together[1].root / "tokens.npy").stat().st_mtime_ns == kept
    # The second was there; its first clip is looked at once more, whether the code is the same.
    assert decodings.opened == Counter(dict.fromkeys("12345678", 1)) + Counter({"0": 2})


@pytest.mark.parametrize("name", ["dinov2_tiny", "i3d_tiny"])
def test_registered_streams(clips, tmp_path, extraction_inline, name):
    build = partial(create_stream, name, seed=3)
    store = extract(clips[:2], build, (2, 2, 2), 16, tmp_path)
    frames = torch.from_numpy(read_segments(clips[1].path, 16))[None]
    tokens = build()(frames)
    pooled = nn.functional.adaptive_avg_pool3d(tokens.values.unflatten(2, tokens.grid[1:]).movedim(-1, 1), 2)
    direct = pooled[0].flatten(1).T
    assert store.width == direct.shape[1]
    np.testing.assert_allclose(store.load(["1"])[0], direct, atol=2e-3 * float(direct.abs().max()))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"stream": forgetful}, "other weights each time"),
    ({"stream": partial(Brightness, float("nan"))}, "not finite in fp16"),
    ({"stream": partial(Brightness, 1e6)}, "not finite in fp16"),
    ({"stream": Brightness(), "checkpoint": "weights.safetensors"}, "checkpoint= goes with the name"),
    ({"clips": "twice"}, "same id"),
    ({"clips": "missing"}, "none of the 1 clips can be read, the first because: missing"),
])  # fmt: skip
def test_what_cannot_be_extracted(clips, tmp_path, extraction_inline, arguments, message):
    chosen = {"twice": clips[:1] * 2, "missing": [clip(tmp_path / "x.webm")]}.get(arguments.pop("clips", ""), clips[:1])
    arguments = {"stream": Brightness()} | arguments
    with pytest.raises(FeatureError, match=message):
        extract(chosen, grid=GRID, frames=FRAMES, root=tmp_path / "store", **arguments)
