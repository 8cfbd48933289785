"""A phone's video is read as a player shows it: turned and mirrored as its container says."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from videos import numbered_frame, write_video

from tcar.data.clip_views import ClipViews
from tcar.data.frame_cache import FrameCache
from tcar.data.health import check
from tcar.data.orientation import Orientation
from tcar.data.ssv2 import SPLITS, Clip
from tcar.data.video import probe, read_frames, read_segments, resize
from tcar.data.views import AugmentConfig, SegmentView
from tcar.lab import params, results
from tcar.lab.steps import streams as steps

FRAMES = 4
CODECS = {"a.mp4": "libx264", "a.mov": "mpeg4", "a.mkv": "libx264", "a.webm": "libvpx-vp9"}
HELD = [(90, {}), (180, {}), (270, {"hflip": True}), (0, {"vflip": True}), (90, {"vflip": True})]


def write(path: Path, **options) -> Path:
    return write_video(path, FRAMES, codec=CODECS[f"a{path.suffix}"], rate=25, **options)


def stored(path: Path) -> np.ndarray:
    """Every frame as the decoder alone gives it."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def shown(frames: np.ndarray, rotation: int, hflip: bool = False, vflip: bool = False) -> np.ndarray:
    """Turned against the clock by numpy, then mirrored."""
    frames = np.rot90(frames, rotation // 90, axes=(1, 2))
    return frames[:, :: -1 if vflip else 1, :: -1 if hflip else 1]


def clip(path: Path) -> Clip:
    return Clip("1", path, 0, "", "", ())


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("rotation", "flips"), HELD)
def test_frames_are_turned_and_mirrored_as_the_container_says(tmp_path, name, rotation, flips):
    path = write(tmp_path / name, rotation=rotation, flips=flips)
    there, wanted = stored(path), shown(stored(path), rotation, **flips)
    np.testing.assert_array_equal(read_frames(path, range(FRAMES)), wanted)
    np.testing.assert_array_equal(read_frames(path, range(FRAMES), upright=False), there)
    np.testing.assert_array_equal(read_segments(path, 2, (30, 20)), resize(wanted[[1, 3]], (30, 20)))
    info, found = probe(path), check(clip(path))
    assert (info.height, info.width) == (found.height, found.width) == wanted.shape[1:3]
    assert (found.ok, found.warnings) == (True, ("rotated",))


def test_what_was_filmed_lying_on_its_side_stands_upright(tmp_path):
    """Pictures that a camera stores turned, with the note that turns them back, are those that were seen."""
    seen = np.stack([numbered_frame(number) for number in range(FRAMES)])
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 120, 160, "yuv444p", {"crf": "5"}
        stream.set_display_rotation(-90)
        for image in np.rot90(seen, 1, axes=(1, 2)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    assert np.abs(read_frames(path, range(FRAMES)) - seen.astype(float)).mean() < 2


def test_an_angle_that_is_no_quarter_turn_is_told_and_not_followed(tmp_path):
    path = write(tmp_path / "a.mp4", rotation=45)
    np.testing.assert_array_equal(read_frames(path, range(FRAMES)), stored(path))
    assert check(clip(path)).warnings == ("slanted",)
    assert Orientation.of_matrix(np.zeros((3, 3))) == Orientation()
    nearly = np.array([[300, -65535, 0], [65535, 300, 0], [0, 0, 1 << 30]])  # of a quarter turn, as rounding leaves it
    assert Orientation.of_matrix(nearly) == Orientation.of_matrix(np.rint(nearly / 65535))


def test_pixels_that_are_not_square_are_told_and_not_stretched(tmp_path):
    path = write(tmp_path / "a.mkv", aspect=Fraction(4, 3))
    assert (check(clip(path)).warnings, probe(path).width) == (("pixels not square",), 160)
    assert check(clip(write(tmp_path / "b.mkv", aspect=Fraction(1)))).warnings == ()


@pytest.mark.parametrize("upright", [True, False])
def test_every_reader_of_clips_reads_alike(tmp_path, upright):
    entry = clip(write(tmp_path / "a.mp4", rotation=90))
    frames = shown(stored(entry.path), 90 if upright else 0)
    middles, config = frames[[1, 3]], AugmentConfig(32, (1.0, 1.0))
    np.testing.assert_array_equal(SegmentView(2, upright=upright)(entry, 0, 0), middles)
    drawn = SegmentView(FRAMES, upright=upright)(entry, 1, 0)  # one frame in each segment leaves nothing to draw
    np.testing.assert_array_equal(drawn, frames)
    cache = FrameCache.open(tmp_path / "cache", 10**7, upright=upright)
    views = ClipViews((2,), 32, False, config, {}, 0, upright=upright)
    for _ in range(2):  # decoded, then out of the cache
        for read in (views, replace(views, cache=cache)):
            np.testing.assert_array_equal(read((entry, 0))[0], resize(middles, 32))


def test_what_is_kept_of_turned_frames_is_not_taken_for_others(tmp_path):
    entry = clip(write(tmp_path / "a.mp4", rotation=180))
    caches = [FrameCache.open(tmp_path / "cache", 10**7, upright=upright) for upright in (True, False)]
    assert not np.array_equal(*[cache.read(entry.path, [0]) for cache in caches])
    for view in (SegmentView(8), SegmentView(8, 0.5)):
        assert replace(view, upright=False).key != view.key
    assert SegmentView(8).key == "segment middles"  # as in the stores that there are


def test_a_store_of_turned_clips_is_another_than_before(monkeypatch, tmp_path):
    def asked(_, wanted, *__, **___):
        raise LookupError(wanted[0].view.key)

    monkeypatch.setattr(steps.extraction, "extract", asked)
    run, keys = params.from_values({"name": "x", "runs": str(tmp_path)}), []
    for rotated, upright in ((None, True), (0, True), (3, True), (3, False), (0, False)):
        if rotated is not None:
            results.write(run.results_dir / "audit.json", {"rotated": rotated})
        changed = params.from_values(run.as_dict() | {"upright": upright})
        with pytest.raises(LookupError) as caught:
            steps.extract(changed, dict.fromkeys(SPLITS, []), ["motion"])
        keys.append(caught.value.args[0])
    plain, turned, stored = "segment middles", "segment middles, turned upright", "segment middles, as stored"
    assert keys == [plain, plain, turned, stored, stored]
