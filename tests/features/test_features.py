import errno
import json
import os
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from bright import FRAMES, GRID, Brightness, clip, contents, extract_one, in_this_process, seven_clips
from torch import nn
from videos import write_broken, write_video

from tcar.__main__ import main
from tcar.data.sampling import segment_indices
from tcar.data.ssv2 import Clip
from tcar.data.video import Video, VideoError, read_segments
from tcar.data.views import SegmentView
from tcar.data.workers import Failure
from tcar.features import ExtractionSettings, FeatureError, FeatureStore, TokenSpec, extract
from tcar.features.batches import Extractor
from tcar.features.making import records
from tcar.streams.grids import Tokens


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
        return extract_one(clips, Brightness, tmp_path_factory.mktemp("store"), batch_clips=3)


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
    other = extract_one(clips, partial(Brightness, 1.0), tmp_path, workers=2, batch_clips=3)
    assert other.key == store.key
    assert contents(other) == contents(store)


def test_a_complete_store_is_opened_and_not_made_again(clips, store, extraction_inline):
    before = {path: path.stat().st_mtime_ns for path in store.root.iterdir()}
    again = extract_one(clips, Brightness, store.root.parent, workers=1, batch_clips=3)
    assert {path: path.stat().st_mtime_ns for path in again.root.iterdir()} == before
    np.testing.assert_array_equal(np.load(store.root / "tokens.npy"), store.load(list("0123456")))


@pytest.mark.parametrize(
    "change", ["nothing", "weights", "grid", "frames", "flip", "batch", "clips", "order", "repaired"]
)
def test_whatever_makes_the_tokens_changes_the_key(clips, store, tmp_path, extraction_inline, change):
    chosen = {"clips": clips[:6], "order": clips[::-1]}.get(change, list(clips))
    if change == "repaired":
        chosen[3] = Clip("3", write_video(tmp_path / "3.webm", 20, width=160, height=96), 0, "", "", ())
    other = extract_one(
        chosen,
        partial(Brightness, 0.5 if change == "weights" else 1.0),
        tmp_path,
        SegmentView(8 if change == "frames" else FRAMES, 0.25 if change == "flip" else 0.0),
        grid=(1, 3, 4) if change == "grid" else GRID,
        batch_clips=4 if change == "batch" else 3,
    )
    assert (other.key == store.key) == (change == "nothing")
    assert other.root.name == f"brightness-{other.key[:16]}"


def test_broken_clips_are_left_out_and_named(clips, tmp_path, extraction_inline):
    broken = {reason: clip(path) for reason, path in write_broken(tmp_path).items()}
    mixed = [*clips[:2], *broken.values(), *clips[2:4]]
    store = extract_one(mixed, Brightness, tmp_path / "store", batch_clips=2)
    assert store.ids == ["0", "1", "2", "3"]
    assert store.broken == {entry.id: reason for reason, entry in broken.items()}
    assert json.loads((store.root / "store.json").read_text())["broken"] == store.broken
    np.testing.assert_allclose(store.load(), expected(clips[:4]), atol=1e-3)
    reason, entry = next(iter(broken.items()))
    with pytest.raises(FeatureError, match=f"clip {entry.id} has no features .*: {reason};"):
        store.load(["0", entry.id])
    with pytest.raises(FeatureError, match="clip 99 has no features .* not among the clips"):
        store.load(["99"])


def test_a_worker_that_dies_though_every_clip_can_be_read_ends_the_run(clips, tmp_path, monkeypatch):
    """The memory ran out, for one; the batches before it stay."""

    def killed(function, items, **_):
        for number, batch in enumerate(items):
            dies = isinstance(function, Extractor) and batch.number == 1
            yield number, Failure("crashed", "exit code -9") if dies else function(batch)

    monkeypatch.setattr("tcar.features.extraction.isolated_map", killed)
    with pytest.raises(FeatureError, match="crashed on batch 1 .* each of its clips can be read"):
        extract_one(clips, Brightness, tmp_path, batch_clips=3)
    (folder,) = tmp_path.iterdir()
    with pytest.raises(FeatureError, match="no complete feature store"):
        FeatureStore.open(folder)
    assert set(records(folder)) == {0}


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
        extract_one(clips, Brightness, tmp_path, batch_clips=3)
    monkeypatch.undo()
    monkeypatch.setattr("tcar.features.extraction.isolated_map", in_this_process)
    resumed = extract_one(clips, Brightness, tmp_path, batch_clips=3)
    np.testing.assert_array_equal(resumed.load(), store.load())


def test_a_store_made_by_other_code_is_kept_until_it_is_to_be_made_again(clips, store, tmp_path, extraction_inline):
    plainly = partial(extract_one, clips, Brightness, tmp_path, batch_clips=3)
    made = extract_one(clips, Rescaled, tmp_path, batch_clips=3)
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
    stated = "name: t\nsemantic_grid: [2, 3, 4]\nsemantic_frames: 4\nbatch_clips: 3\nablation_semantic_grids: []\n"
    (project / "p.yaml").write_text(stated)
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
    store = extract_one(clips[:5], Brightness, tmp_path, batch_clips=3)
    assert store.broken == {"1": "reading it crashed"}
    np.testing.assert_allclose(store.load(), expected([clips[0], *clips[2:5]]), atol=1e-3)


def test_the_stream_in_this_process_gives_the_same(clips, store, tmp_path):
    """The way of a GPU: workers decode, this process computes."""
    other = extract_one(clips, Brightness, tmp_path, workers=1, batch_clips=3, device="cpu:0")
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
    wanted = [
        TokenSpec(Brightness, GRID, SegmentView(FRAMES)),
        TokenSpec(partial(Brightness, 0.5), (2, 6, 2), SegmentView(8, 0.5)),
        TokenSpec(partial(Brightness, 2.0), GRID, SegmentView(FRAMES)),
    ]
    damaged = clip(tmp_path / "7.webm")
    damaged.path.write_bytes(clips[5].path.read_bytes())
    mixed = [*clips, damaged, clip(tmp_path / "8.webm")]
    settings = ExtractionSettings(batch_clips=4, views=2, device=device)
    read = Video.read

    def failing(video, indices, size=None):
        if video.path == damaged.path and 22 in indices:  # of 24 frames, a middle of 8 segments and of no 4
            raise VideoError(video.path, "undecodable", "frame 22")
        return read(video, indices, size)

    monkeypatch.setattr(Video, "read", failing)
    monkeypatch.setattr(
        SegmentView, "places", lambda view, name, count, number, seed: segment_indices(count, view.frames)
    )
    alone = [extract(mixed, [one], tmp_path / "alone", settings)[0] for one in wanted]
    assert [set(store.broken) for store in alone] == [{"8"}, {"7", "8"}, {"8"}]
    (first,) = extract(mixed, wanted[1:2], tmp_path / "together", settings)
    kept = (first.root / "tokens.npy").stat().st_mtime_ns
    decodings = Decodings(monkeypatch)
    together = extract(mixed, wanted, tmp_path / "together", settings)
    assert [contents(store) for store in together] == [contents(store) for store in alone]
    assert (together[1].root / "tokens.npy").stat().st_mtime_ns == kept
    # The second was there; its first clip is looked at once more, whether the code is the same. A clip that cannot be
    # read is tried for each of the others by itself.
    assert decodings.opened == Counter(dict.fromkeys("1234567", 1)) + Counter({"0": 2, "8": 3})


@pytest.mark.parametrize(("build", "chosen", "message"), [
    (forgetful, "one", "other weights each time"),
    (partial(Brightness, float("nan")), "one", "not finite in fp16"),
    (partial(Brightness, 1e6), "one", "not finite in fp16"),
    (Brightness, "twice", "same id"),
    (Brightness, "missing", "none of the 1 clips can be read, the first because: missing"),
])  # fmt: skip
def test_what_cannot_be_extracted(clips, tmp_path, extraction_inline, build, chosen, message):
    found = {"one": clips[:1], "twice": clips[:1] * 2, "missing": [clip(tmp_path / "x.webm")]}[chosen]
    with pytest.raises(FeatureError, match=message):
        extract_one(found, build, tmp_path / "store")
