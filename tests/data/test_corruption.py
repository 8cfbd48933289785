import av
import numpy as np
import pytest
from damage import DAMAGE, FORMATS, Case, attempt, judge, reference, write_format
from videos import write_video

from tcar.data.health import check
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError, read_frames
from tcar.data.workers import isolated_map


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    paths = {kind: write_format(folder, kind) for kind in FORMATS}
    for path in paths.values():
        np.save(folder / f"{path.stem}.npy", reference(path))
    return paths


@pytest.fixture(scope="module")
def outcomes(intact):
    """Every format in every way of damage, read in a process that could be killed."""
    cases = [Case(path, kind, damage, 7 + n) for kind, path in intact.items() for n, damage in enumerate(DAMAGE)]
    return [(cases[number], outcome) for number, outcome in isolated_map(attempt, cases, workers=2, time_limit=60.0)]


def test_damage_ends_in_exact_frames_or_in_the_quarantine(outcomes):
    assert len(outcomes) == len(FORMATS) * len(DAMAGE)
    bad = [(case.format, case.damage, outcome) for case, outcome in outcomes if judge(outcome).startswith("UNACC")]
    assert bad == []


def test_none_of_this_damage_to_the_codec_of_the_dataset_is_read_as_frames(outcomes):
    found = {judge(outcome) for case, outcome in outcomes if case.format.startswith("VP9 in WebM")}
    assert all(verdict.startswith(("exact", "error")) for verdict in found)


def test_flipped_bytes_of_vp9_are_noticed_where_libav_notices_nothing(intact, tmp_path):
    """In the data of the frames, one byte at a time; `reference` decodes with libav's own decoder."""
    source = intact["VP9 in WebM"]
    content, frames = source.read_bytes(), np.load(source.with_suffix(".npy"))
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    noticed, silent = 0, 0
    for number, packet in enumerate(packets):
        damaged = bytearray(content)
        damaged[content.index(packet) + len(packet) // 2] ^= 0x55
        path = tmp_path / f"{number}.webm"
        path.write_bytes(damaged)
        try:
            silent += not np.array_equal(reference(path), frames)
            read_frames(path, range(len(frames)))
        except (VideoError, av.FFmpegError):
            noticed += 1
    assert silent >= 20 and noticed >= 22


@pytest.mark.parametrize("kind", ["VP9 in WebM", "H.264 in MP4"])
def test_a_hole_in_a_frame(intact, tmp_path, kind):
    """As an incomplete download leaves it; a decoder may take the zeros for padding."""
    content = intact[kind].read_bytes()
    with av.open(str(intact[kind])) as container:
        packet = max((bytes(packet) for packet in container.demux(video=0)), key=len)
    end = content.index(packet) + len(packet)
    assert len(packet) > 600
    (tmp_path / "hole").write_bytes(content[: end - 520] + bytes(520) + content[end:])
    with pytest.raises(VideoError, match="hole of zeros"):
        read_frames(tmp_path / "hole", [23])


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libx264"])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_without_anything_in_it_is_sound(tmp_path, codec, level):
    path = tmp_path / ("flat.webm" if codec == "libvpx-vp9" else "flat.mp4")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 424, 240, "yuv420p"
        for _ in range(12):
            flat = np.full((240, 424, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="rgb24")))
        container.mux(stream.encode())
    assert check(Clip("flat", path, None, "", "", ())).ok


def test_a_beginning_that_is_lost_with_its_header(intact, tmp_path):
    """Zeros over the declared duration and the first frames: what is left is whole frames, but under other numbers."""
    content = intact["VP9 in WebM, hidden frames"].read_bytes()
    with av.open(str(intact["VP9 in WebM, hidden frames"])) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    tag, start = content.index(b"DURATION"), content.index(packets[0])
    damaged = content[:tag] + b"X" * 8 + content[tag + 8 : start] + bytes(content.index(packets[8]) - start)
    (tmp_path / "lost.webm").write_bytes(damaged + content[len(damaged) :])
    with pytest.raises(VideoError):
        read_frames(tmp_path / "lost.webm", [0])


def test_zero_by_zero(tmp_path):
    """A header without a size, while the frames bring their own."""
    source = write_video(tmp_path / "clip.webm")
    content = source.read_bytes()
    for name, pixels in ((b"\xb0", b"\xa0"), (b"\xba", b"\x78")):  # PixelWidth 160, PixelHeight 120
        assert content.count(name + b"\x81" + pixels) == 1
        content = content.replace(name + b"\x81" + pixels, name + b"\x81\x00")
    path = tmp_path / "zero.webm"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_frames(path, range(31)), reference(source))
