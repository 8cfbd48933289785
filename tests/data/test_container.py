"""A file cut at any byte, or with a hole in it, is found by its structure, whatever its container declares."""

import av
import numpy as np
import pytest
from sound_videos import DECLARED, H264_B, MPEG4, SMALL, UNCLAIMED, VP8, VP9, written
from videos import decode, write_video

from tcar.data.video import VideoError, read_frames

FRAGMENTS = {"muxer": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}}
FILES = {
    "webm": VP9,
    "mkv": H264_B,
    "mp4": H264_B,
    "mov": H264_B | FRAGMENTS,
    "avi": MPEG4,
    "flv": H264_B,
    "ivf": VP9,
    "asf": {"codec": "wmv2"},
    "ogg": VP8,
    "ts": H264_B,
    "mpg": {"codec": "mpeg2video", "bf": "2"},
}
UNUSUAL = [
    DECLARED["MP4 trimmed at a key frame"],
    DECLARED["a segment of H.264"],
    UNCLAIMED["live WebM"],
    UNCLAIMED["Matroska with an attachment"],
    UNCLAIMED["VP9 with transparency"],
]
MAKERS = [lambda folder, suffix=suffix: written(f"clip.{suffix}", FILES[suffix], folder, 12) for suffix in FILES]


def outcome(path, content: bytes, whole: list[np.ndarray]) -> str:
    path.write_bytes(content)
    try:
        frames = read_frames(path, range(len(whole)))
    except (VideoError, IndexError) as error:
        return type(error).__name__
    return "exact" if np.array_equal(frames, whole) else "wrong"


@pytest.mark.parametrize("maker", [*MAKERS, *UNUSUAL], ids=[*FILES, *(f"unusual{n}" for n in range(len(UNUSUAL)))])
def test_a_cut_at_any_byte_and_a_hole_anywhere(tmp_path, maker):
    source, _ = maker(tmp_path)
    content, whole = source.read_bytes(), decode(source)
    generator = np.random.default_rng(0)
    path = tmp_path / f"damaged{source.suffix}"
    cuts = [content[:end] for end in generator.integers(1, len(content) - 1, 8)]
    begins = generator.integers(0, len(content) * 9 // 10, 8)
    holes = [content[:begin] + content[begin + generator.integers(1, 300) :] for begin in begins]
    found = [outcome(path, damaged, whole) for damaged in (content[:-1], *cuts, *holes)]
    # a byte that only fills up, or the name of the channel, can be lost without a loss
    assert set(found) <= {"VideoError", "exact"} and found.count("exact") <= 2


def test_a_group_without_its_block(tmp_path):
    """Blocks are in groups where transparency goes with them: one of them renamed, so that readers step over it."""
    path, _ = UNCLAIMED["VP9 with transparency"](tmp_path)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = bytes([packet for packet in container.demux(video=0) if packet.size][15])
    content[content.rindex(b"\xa1", 0, content.index(packet) - 4)] = 0xEC
    path.write_bytes(content)
    with pytest.raises(VideoError, match="belong to no frame"):
        read_frames(path, [0])


@pytest.mark.parametrize("suffix", ["webm", "mp4", "avi"])
def test_what_is_appended_is_no_part_of_the_film(tmp_path, suffix):
    path = write_video(tmp_path / f"clip.{suffix}", 6, **SMALL, **FILES[suffix])
    assert outcome(path, path.read_bytes() + bytes(100), decode(path)) == "exact"
