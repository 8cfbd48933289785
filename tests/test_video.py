import pickle

import av
import decord
import numpy as np
import pytest
from videos import numbered_frame, read_number, write_broken, write_video

from tcar.data import video
from tcar.data.video import VideoError, probe, read_frames, read_segments, resize, segment_indices

SHUFFLED = [20, 3, 30, 3, 0, 11]
# frames, height, width as the players count them
SIZES = {
    "arm_wrestling.mp4": (280, 256, 340),
    "nasa_13013.mp4": (390, 270, 480),
    "ntu.avi": (103, 1080, 1920),
    "pancake.mkv": (310, 240, 426),
    "part_0.mp4": (32, 256, 340),
    "testsrc2_vp9.webm": (30, 720, 1280),
    "v_GGSY1Qvo990.mp4": (355, 240, 320),
}


def decode_all(path, indices) -> np.ndarray:
    """The slow reference: decode the whole video in the order of showing, then pick."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.best("video")))
    return np.stack([frames[index].to_ndarray(format="rgb24") for index in indices])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.webm")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return write_broken(tmp_path_factory.mktemp("broken"))


@pytest.mark.parametrize("name", SIZES)
def test_frames_of_real_videos(shared, name):
    path = shared / "clips" / name
    info = probe(path)
    assert (info.frames, info.height, info.width) == SIZES[name]
    assert info.frames == pytest.approx(info.duration * info.rate, abs=1)
    indices = [
        info.frames - 2,
        *np.random.default_rng(0).permutation(info.frames)[:6].tolist(),
        info.frames - 1,
        0,
    ]
    np.testing.assert_array_equal(read_frames(path, indices), decode_all(path, indices))


@pytest.mark.parametrize(
    "options",
    [
        {"crf": "30", "b": "0", "cpu-used": "8"},
        {"crf": "40", "b": "0", "cpu-used": "4", "g": "8", "auto-alt-ref": "1", "lag-in-frames": "16"},
    ],
)
def test_every_frame_is_the_one_asked_for(tmp_path, options):
    path = write_video(tmp_path / "clip.webm", 40, **options)
    order = np.random.default_rng(1).permutation(40).tolist()
    assert [read_number(frame) for frame in read_frames(path, order)] == order
    np.testing.assert_array_equal(read_frames(path, order), decode_all(path, order))


def test_mpeg4_with_b_frames_in_avi(tmp_path):
    """Where decord gives other frames than those asked for."""
    path = write_video(tmp_path / "clip.avi", codec="mpeg4", rate=25, bf="2", qscale="2")
    assert [read_number(frame) for frame in read_frames(path, SHUFFLED)] == SHUFFLED


def test_vp9_is_read_by_decord_and_by_pyav_alike(clip, monkeypatch):
    by_decord = read_frames(clip, SHUFFLED)
    calls = []
    monkeypatch.setattr(decord, "VideoReader", lambda *_, **options: calls.append(options) or [None] * 30)
    by_pyav = read_frames(clip, SHUFFLED)
    assert calls == [{"num_threads": 1}]  # and its count, 30 of 31 frames, was not believed
    np.testing.assert_array_equal(by_decord, by_pyav)
    assert [read_number(frame) for frame in by_pyav] == SHUFFLED


def test_probe(clip):
    info = probe(clip)
    assert (info.frames, info.width, info.height, info.rate, info.codec) == (31, 160, 120, 12.0, "vp9")
    assert info.duration == pytest.approx(31 / 12, abs=0.01)
    assert info.warning == ""


@pytest.mark.parametrize("reason", video.REASONS)
def test_broken_files_say_why(broken, reason):
    path = broken[reason]
    with pytest.raises(VideoError) as caught:
        read_segments(path, 8)
    assert (caught.value.reason, caught.value.path) == (reason, path)
    assert str(caught.value).startswith(f"{path}: {reason}")


@pytest.mark.parametrize("container", ["mp4", "avi", "mkv"])
def test_files_cut_short_in_other_containers(tmp_path, container):
    whole = write_video(tmp_path / f"whole.{container}", codec="mpeg4", rate=25)
    assert probe(whole).frames == 31
    content = whole.read_bytes()
    for share in (0.3, 0.5, 0.8):
        cut = tmp_path / f"cut.{container}"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(VideoError) as caught:
            probe(cut)
        assert caught.value.reason == "truncated"


def test_damage_hidden_by_concealment_is_found(shared, tmp_path):
    content = bytearray((shared / "clips" / "part_0.mp4").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.raises(VideoError) as caught:
        read_frames(tmp_path / "damaged.mp4", [31])
    assert caught.value.reason == "undecodable"


def test_a_picture_is_not_a_video(tmp_path):
    path = tmp_path / "picture.webm"
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(0), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="not a video"):
        probe(path)


def test_a_variable_rate_is_a_warning(tmp_path):
    """Twelve frames a second are declared, but only every third or fourth is there."""
    times = np.cumsum([3, 4, 1, 2] * 8)[:31].tolist()
    path = write_video(tmp_path / "uneven.webm", times=times)
    info = probe(path)
    assert info.frames == 31
    assert "variable frame rate" in info.warning
    assert [read_number(frame) for frame in read_frames(path, SHUFFLED)] == SHUFFLED


@pytest.mark.parametrize("indices", [[31], [0, -1]])
def test_a_frame_the_video_does_not_have(clip, indices):
    with pytest.raises(IndexError, match=r"clip\.webm.*0 to 30"):
        read_frames(clip, indices)


def test_no_frames_asked_for(clip):
    assert read_frames(clip, []).shape == (0, 120, 160, 3)


def test_the_error_survives_the_way_between_processes(tmp_path):
    error = VideoError(tmp_path / "x.webm", "truncated", "14 of 31")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason, copy.detail) == (str(error), "truncated", "14 of 31")


@pytest.mark.parametrize("segments", [1, 8, 16])
@pytest.mark.parametrize("frames", [1, 5, 8, 31, 200])
def test_segments_are_represented_by_their_middles(frames, segments):
    indices = segment_indices(frames, segments)
    for part, index in enumerate(indices):
        start, end = part * frames / segments, (part + 1) * frames / segments
        assert start - 1 < index <= end
        assert index == int((start + end) / 2)
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < frames


def test_a_short_video_repeats_frames(tmp_path):
    path = write_video(tmp_path / "short.webm", 3)
    assert [read_number(frame) for frame in read_segments(path, 8)] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_resizing_averages_the_area():
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    expected = frames.reshape(2, 6, 2, 8, 2, 3).mean((2, 4))
    assert np.abs(resize(frames, (6, 8)) - expected).max() <= 0.5
    assert resize(frames, 24).shape == (2, 24, 24, 3)
    np.testing.assert_array_equal(resize(frames, (12, 16)), frames)
