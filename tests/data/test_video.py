import pickle
from types import SimpleNamespace

import av
import decord
import numpy as np
import pytest
from videos import numbered_frame, read_number, write_broken, write_video

from tcar.data import video
from tcar.data.container import REASONS, strict_decoder
from tcar.data.video import VideoError, probe, read_frames, read_segments, resize

SHUFFLED = [20, 3, 30, 3, 0, 11]
KINDS = {  # how a file is written: with frames that lean on later ones, with far between key frames
    "clip.mp4": {"codec": "libx264", "rate": 30, "width": 340, "height": 256, "bf": "3", "g": "12"},
    "clip.mkv": {"codec": "libx264", "rate": 25, "width": 426, "height": 240, "bf": "2", "g": "250"},
    "clip.avi": {"codec": "mpeg4", "rate": 25, "width": 320, "height": 240, "qscale": "3"},
    "clip.webm": {"width": 160, "height": 240, "crf": "30", "cpu-used": "8", "g": "16"},
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


@pytest.mark.parametrize("name", KINDS)
def test_frames_of_the_usual_containers_and_codecs(tmp_path, name):
    path = write_video(tmp_path / name, 62, **KINDS[name])
    info = probe(path)
    assert (info.frames, info.height, info.width) == (62, KINDS[name]["height"], KINDS[name]["width"])
    assert info.frames == pytest.approx(info.duration * info.rate, abs=1)
    indices = [
        info.frames - 2,
        *np.random.default_rng(0).permutation(info.frames)[:6].tolist(),
        info.frames - 1,
        0,
    ]
    found = read_frames(path, indices)
    np.testing.assert_array_equal(found, decode_all(path, indices))
    assert [read_number(frame) for frame in found] == indices


def test_hidden_frames_of_vp9_are_not_counted(tmp_path):
    hidden = {"crf": "40", "b": "0", "cpu-used": "4", "g": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}
    path = write_video(tmp_path / "clip.webm", 40, **hidden)
    order = np.random.default_rng(1).permutation(40).tolist()
    assert [read_number(frame) for frame in read_frames(path, order)] == order
    np.testing.assert_array_equal(read_frames(path, order), decode_all(path, order))


def test_mpeg4_with_b_frames_in_avi(tmp_path):
    """The container has no times, the frames leave the decoder in another order, and decord gives others."""
    path = write_video(tmp_path / "clip.avi", codec="mpeg4", rate=25, bf="2", qscale="2")
    assert [read_number(frame) for frame in read_frames(path, SHUFFLED)] == SHUFFLED


def test_decord_reads_vp9_alike(clip):
    """A reader of other hands; libav's own decoder is the reference everywhere else."""
    expected = decord.VideoReader(str(clip), num_threads=1).get_batch(SHUFFLED).asnumpy()
    np.testing.assert_array_equal(read_frames(clip, SHUFFLED), expected)


def test_a_file_too_large_to_hold_is_read_twice(clip, monkeypatch):
    held = read_frames(clip, SHUFFLED)
    monkeypatch.setattr(video, "HELD_BYTES", 0)
    np.testing.assert_array_equal(read_frames(clip, SHUFFLED), held)


@pytest.mark.parametrize("size", [16, (30, 50), (240, 320)])
def test_resizing_while_decoding_is_resizing(clip, size):
    np.testing.assert_array_equal(read_frames(clip, SHUFFLED, size), resize(read_frames(clip, SHUFFLED), size))
    assert read_segments(clip, 4, size).shape == (4, *((size, size) if isinstance(size, int) else size), 3)
    assert read_frames(clip, [], size).shape[1:3] == ((size, size) if isinstance(size, int) else size)


def test_a_size_without_pixels(clip):
    with pytest.raises(ValueError, match="size="):
        read_frames(clip, [0], (0, 10))


def test_ten_thousand_frames(tmp_path):
    path = write_video(tmp_path / "long.mp4", 10_000, codec="mpeg4", rate=25, width=96, height=16, g="250")
    assert probe(path).frames == 10_000
    found = read_frames(path, [9_999, 5_000, 63])
    assert [read_number(frame) for frame in found] == [9_999 % 64, 5_000 % 64, 63]


@pytest.mark.parametrize(("pixels", "decoder"), [("yuv420p", "libvpx-vp9"), ("yuv420p10le", "vp9")])
def test_which_decoder_reads_vp9(unchecked, pixels, decoder):
    """libvpx cannot decode more than 8 bits here, nor encode them, so that there is no file of them to read."""
    stream = SimpleNamespace(codec_context=av.CodecContext.create("vp9", "r"))
    stream.codec_context.pix_fmt = pixels
    assert strict_decoder(stream).codec.name == decoder
    assert strict_decoder(stream).thread_count == 1


def test_one_frame(tmp_path):
    path = write_video(tmp_path / "single.webm", 1)
    assert probe(path).frames == 1
    np.testing.assert_array_equal(read_segments(path, 4), decode_all(path, [0] * 4))


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".txt", ""])
def test_the_name_of_a_file_says_nothing(clip, tmp_path, suffix):
    (tmp_path / f"clip{suffix}").write_bytes(clip.read_bytes())
    np.testing.assert_array_equal(read_frames(tmp_path / f"clip{suffix}", SHUFFLED), read_frames(clip, SHUFFLED))


def test_the_frames_of_a_clip_have_one_size(tmp_path):
    """Two films behind each other, as MPEG streams allow."""
    path = tmp_path / "both.m2v"
    for width in (160, 320):
        single = write_video(tmp_path / f"{width}.m2v", 12, codec="mpeg2video", rate=25, width=width)
        with path.open("ab") as file:
            file.write(single.read_bytes())
    with pytest.raises(VideoError, match="320x120, not 160x120") as caught:
        read_frames(path, [20])
    assert caught.value.reason == "undecodable"


def test_a_damaged_tag_is_no_damaged_video(clip, tmp_path):
    content = clip.read_bytes()
    with av.open(str(clip)) as container:
        tag = container.metadata["ENCODER"].encode()
    (tmp_path / "tag.webm").write_bytes(content.replace(tag, b"\xff" * len(tag)))
    np.testing.assert_array_equal(read_frames(tmp_path / "tag.webm", SHUFFLED), read_frames(clip, SHUFFLED))


def test_a_frame_that_the_container_steps_over(clip, tmp_path):
    """One block of Matroska made a piece of padding: the next frames would be decoded from the wrong picture."""
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packet = bytes([packet for packet in container.demux(video=0) if packet.size][15])
    block = content.rindex(b"\xa3", 0, content.index(packet) - 4)
    content[block] = 0xEC
    (tmp_path / "lost.webm").write_bytes(content)
    with pytest.raises(VideoError, match="belong to no frame") as caught:
        read_frames(tmp_path / "lost.webm", [3])
    assert caught.value.reason == "truncated"


def test_probe(clip):
    info = probe(clip)
    assert (info.frames, info.width, info.height, info.rate, info.codec) == (31, 160, 120, 12.0, "vp9")
    assert info.duration == pytest.approx(31 / 12, abs=0.01)
    assert info.warning == ""


@pytest.mark.parametrize("reason", REASONS)
def test_broken_files_say_why(broken, reason):
    path = broken[reason]
    with pytest.raises(VideoError) as caught:
        read_segments(path, 8)
    assert (caught.value.reason, caught.value.path) == (reason, path)
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_damage_hidden_by_concealment_is_found(tmp_path):
    path = write_video(tmp_path / "whole.mp4", 32, codec="libx264", rate=30, width=340, height=256)
    content = bytearray(path.read_bytes())
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


def test_a_short_video_repeats_frames(tmp_path):
    path = write_video(tmp_path / "short.webm", 3)
    assert [read_number(frame) for frame in read_segments(path, 8)] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_resizing_averages_the_area():
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    expected = frames.reshape(2, 6, 2, 8, 2, 3).mean((2, 4))
    assert np.abs(resize(frames, (6, 8)) - expected).max() <= 0.5
    assert resize(frames, 24).shape == (2, 24, 24, 3)
    np.testing.assert_array_equal(resize(frames, (12, 16)), frames)
