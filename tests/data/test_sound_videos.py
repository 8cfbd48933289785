"""What a player shows whole is read whole, whatever its container declares, keeps beside it and how it is coded."""

from pathlib import Path

import av
import numpy as np
import pytest
from sound_videos import CUT, DECLARED, H264_B, HIDDEN, LATE, MPEG4, PAUSED, SMALL, UNCLAIMED, VP8, VP9
from videos import decode, numbered_frame, read_number, write_video

from tcar.data.health import check
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError, VideoInfo, probe, read_frames
from tcar.tabletop.dataset import write_video as write_demo_clip

SOUND = DECLARED | UNCLAIMED | HIDDEN


def check_whole(path, shown: int) -> VideoInfo:
    """Compare every frame with the one that libav's own decoder shows, and the audit's verdict."""
    info, expected = probe(path), decode(path)
    assert info.frames == shown == len(expected)
    np.testing.assert_array_equal(read_frames(path, range(shown)), expected)
    assert check(Clip("clip", path, None, "", "", ())).ok
    return info


@pytest.mark.parametrize("kind", SOUND)
def test_sound_files_are_read_whole(tmp_path, kind):
    check_whole(*SOUND[kind](tmp_path))


@pytest.mark.parametrize("kind", CUT)
def test_what_a_cut_leaves_is_read_from_where_a_player_shows_it(tmp_path, kind):
    path = CUT[kind](tmp_path)
    check_whole(path, len(decode(path)))


def write_with_sound(path):
    """Numbered frames and a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        codec = {".webm": "libopus", ".avi": "mp2", ".ts": "mp2"}.get(path.suffix, "aac")
        audio = container.add_stream(codec, rate=48000)
        tone = (8000 * np.sin(np.arange(1920) * 0.05)).astype(np.int16).repeat(2)[None]
        for number in range(25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered_frame(number, 96, 64), format="rgb24")))
            heard = av.AudioFrame.from_ndarray(tone, format="s16", layout="stereo")
            heard.sample_rate, heard.pts = 48000, 1920 * number
            container.mux(audio.encode(heard))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize("suffix", ["webm", "mkv", "mp4", "avi", "flv", "ts"])
def test_a_track_of_sound(tmp_path, suffix):
    """It takes most of the file: no frame is lost for it, and a hole among the frames is found all the same."""
    path = write_with_sound(tmp_path / f"clip.{suffix}")
    check_whole(path, 25)
    content = path.read_bytes()
    with av.open(str(path)) as container:
        packet = bytes([packet for packet in container.demux(video=0) if packet.size][12])
    at = content.find(packet[-24:]) + 12 if suffix != "ts" else len(content) // 2
    path.write_bytes(content[:at] + content[at + 100 :])
    with pytest.raises(VideoError):
        read_frames(path, [0])


@pytest.mark.parametrize(("suffix", "options"), [("webm", VP8), ("mkv", H264_B), ("flv", H264_B), ("ivf", VP9)])
def test_how_long_a_film_lasts_is_counted_from_its_first_frame(tmp_path, suffix, options):
    info = probe(write_video(tmp_path / f"late.{suffix}", **SMALL, **options, times=LATE))
    assert info.duration == pytest.approx(31 / 25, abs=0.002) and info.warning == ""


@pytest.mark.parametrize(("suffix", "options"), [("webm", VP8), ("avi", MPEG4), ("ts", H264_B)])
def test_a_pause_is_a_warning_of_the_audit(tmp_path, suffix, options):
    path = write_video(tmp_path / f"pause.{suffix}", **SMALL, **options, times=PAUSED)
    assert "stands for 1.68 s" in check(Clip("clip", path, None, "", "", ())).detail


def test_a_beginning_that_is_missing_is_a_warning_of_the_audit(tmp_path):
    assert "packets cannot be shown" in probe(CUT["H.265 within a group"](tmp_path)).warning


# Names that libav takes for something else.
NAMES = {
    "a time": "12:30:05.webm",
    "a protocol": "file:other.webm",
    "two files": "concat:other.webm|other.webm",
    "an address": "http://127.0.0.1:9/other.webm",
    "one of many": "clip%03d.jpg",
    "each of many": "clip*.png",
    "a letter of no alphabet": b"clip\xff.webm".decode(errors="surrogateescape"),
    "a folder of a time": "12:30/clip.webm",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_a_name(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "other.webm", 12, **SMALL, **VP8)
    source = write_video(tmp_path / "source.webm", 5, **SMALL, **VP8)
    path = tmp_path / NAMES[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read_bytes())
    for name in (path, path.relative_to(tmp_path)):
        assert [read_number(frame) for frame in read_frames(name, range(probe(name).frames))] == list(range(5))


def test_a_clip_of_the_demo_goes_into_a_folder_of_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "12:30").mkdir()
    write_demo_clip(Path("12:30/clip.webm"), np.zeros((3, 48, 64, 3), np.uint8), 12)
    assert probe("12:30/clip.webm").frames == 3


@pytest.mark.parametrize(
    "content", ["ffconcat version 1.0\nfile other.webm\n", "#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"]
)
def test_a_list_of_other_files_is_not_a_video(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "other.webm", 5, **SMALL, **VP8)
    (tmp_path / "list.webm").write_text(content)
    with pytest.raises(VideoError, match="not a video"):
        probe("list.webm")
