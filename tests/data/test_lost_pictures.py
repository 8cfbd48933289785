"""A packet that is missing: what was predicted from it is refused, and where nothing was, all others are exact."""

import av
import pytest
from sound_videos import SMALL
from videos import copy_packets, decode, write_video

from tcar.data.pictures import Mpeg2, Mpeg4
from tcar.data.slices import H264
from tcar.data.video import VideoError, probe, read_frames

FRAMES = 16
CODED = {
    "H.264": {"codec": "libx264", "bf": "0", "g": "12"},
    "H.264 with B-frames": {"codec": "libx264", "bf": "2", "g": "8"},
    "H.264 with a pyramid": {"codec": "libx264", "bf": "3", "refs": "4", "g": "30"},
    "H.264 in open groups": {"codec": "libx264", "bf": "2", "g": "8", "x264-params": "open-gop=1"},
    "H.265": {"codec": "libx265", "x265-params": "bframes=3:keyint=12:log-level=none"},
    "MPEG-4": {"codec": "mpeg4", "qscale": "4", "g": "12"},
    "MPEG-4 with B-frames": {"codec": "mpeg4", "qscale": "4", "g": "12", "bf": "2"},
    "MPEG-2": {"codec": "mpeg2video", "qscale": "4", "g": "12"},
    "MPEG-2 with B-frames": {"codec": "mpeg2video", "qscale": "4", "g": "9", "bf": "2"},
    "MPEG-1": {"codec": "mpeg1video", "qscale": "4", "g": "12", "bf": "1"},
    "VP9": {"codec": "libvpx-vp9", "crf": "30", "deadline": "realtime", "cpu-used": "8"},
}
SUFFIXES = ["mkv", "mp4", "ts", "avi"]
KINDS = [(coded, SUFFIXES[number % 4]) for number, coded in enumerate(CODED) if coded not in ("H.265", "VP9")]
KINDS += [("H.264", "avi"), ("H.265", "mp4"), ("VP9", "webm")]


@pytest.mark.parametrize(("coded", "suffix"), KINDS)
def test_every_packet_in_turn(tmp_path, coded, suffix):
    source = write_video(tmp_path / f"whole.{suffix}", FRAMES, **SMALL, **CODED[coded])
    whole = [frame.tobytes() for frame in decode(source)]
    assert probe(source).warning == "" and len(whole) == FRAMES
    refused = 0
    # a stream without its first picture begins with a later one, as one that was cut does
    for lost in range(1, FRAMES):
        path = tmp_path / f"{lost}.{suffix}"
        copy_packets(source, path, lambda number, content, lost=lost: content if number != lost else None)
        try:
            info = probe(path)
            frames = [frame.tobytes() for frame in read_frames(path, range(info.frames))]
        except VideoError:
            refused += 1
            continue
        assert len(frames) == FRAMES - 1 and [frame for frame in whole if frame in frames] == frames
        assert info.warning or lost == FRAMES - 1
    # nothing is predicted from the last one, nor from the B-frames
    assert FRAMES // 4 <= refused < FRAMES - 1


def add_all(pictures, packets):
    for packet in packets:
        pictures.add(memoryview(packet))
    pictures.finish()
    return pictures


def packets_of(path):
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        return container.streams.video[0].codec_context.extradata, packets


def test_numbers_that_are_allowed_to_leave_gaps(tmp_path):
    """H.264 in layers of time leaves out the numbers of pictures that were never sent, and says so."""
    extradata, packets = packets_of(write_video(tmp_path / "clip.mkv", 8, **SMALL, **CODED["H.264"]))
    told = H264(extradata)
    assert add_all(H264(extradata), packets[:3] + packets[4:]).lost
    told._sequences = {number: kept._replace(gaps=True) for number, kept in told._sequences.items()}
    assert add_all(told, packets[:3] + packets[4:]).lost == ""


def bits_of(*fields: int | str) -> bytes:
    """Numbers in the code of Exp-Golomb, and bits as they are."""
    bits = ""
    for field in fields:
        bits += field if isinstance(field, str) else f"{field + 1:b}".rjust(2 * (field + 1).bit_length() - 1, "0")
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


# Of a slice: its type, and what stands between its place in the order of showing and the marking of references.
SLICES = {
    "intra": (7, ()),
    "predicted": (5, ("0", "1", 0, 2, 3)),  # a list in another order
    "weighted": (5, ("1", 1, "0", 5, 5, "1", 7, 7, "1", 1, 2, 3, 4, "00")),  # two references, weights for the first
    "between": (6, ("1", "0", "1", 0, 1, 3, "0")),  # two lists, the first in another order
}


@pytest.mark.parametrize("kind", SLICES)
def test_numbers_that_begin_again_without_a_key_frame(kind):
    """H.264 may forget all references at any picture (operation 5): the next one is then number 1."""
    start, weighted, (type_of_slice, lists) = b"\0\0\1", str(int(kind == "weighted")), SLICES[kind]
    head = start + b"\x67" + bytes([77, 0, 30]) + bits_of(0, 0, 0, 0, 4, "0", 1, 1, "1100")
    for number in (0, 1):  # the slices refer to the second
        head += start + b"\x68" + bits_of(number, 0, "00", 0, 0, 0, weighted + "00", 0, 0, 0, "000")

    def slice_of(number: int, *marking: int | str) -> bytes:
        numbers = f"{number:04b}", f"{2 * number:04b}"
        return start + b"\x61" + bits_of(0, type_of_slice, 1, *numbers, *lists, *marking, 0) + b"\x55" * 40

    key = head + start + b"\x65" + bits_of(0, 7, 1, "0000", 0, "0000", "00", 0) + b"\x55" * 40
    before = [key, slice_of(1, "0"), slice_of(2, "0")]
    forgets, forgets_one = slice_of(3, "1", 1, 0, 5, 0), slice_of(3, "1", 1, 0, 0)
    assert add_all(H264(None), [*before, forgets, slice_of(1, "0"), slice_of(2, "0")]).lost == ""
    assert "packet 4" in add_all(H264(None), [*before, forgets_one, slice_of(1, "0")]).lost
    assert "packet 3" in add_all(H264(None), [*before, slice_of(1, "0")]).lost


def test_an_encoder_that_does_not_turn_the_rounding(tmp_path):
    extradata, packets = packets_of(write_video(tmp_path / "clip.mkv", 12, **SMALL, **CODED["MPEG-4"]))
    alike = []
    for packet in packets:
        bits = bytearray(packet)
        at = bits.index(b"\0\0\1\xb6") + 4
        # type (2 bits), seconds (1), a mark, the time (5 bits of 25 steps), a mark, coded, and then the rounding
        assert bits[at] >> 6 == (0 if not alike else 1)
        bits[at + 1] &= ~0b00010000
        alike.append(bytes(bits))
    assert add_all(Mpeg4(extradata), packets[:5] + packets[6:]).lost
    assert add_all(Mpeg4(extradata), alike[:5] + alike[6:]).lost == ""


def test_numbers_of_ten_bits():
    """A group of more than 1024 pictures, and an encoder that leaves all numbers at zero."""

    def picture(number: int, kind: int) -> bytes:
        return b"\0\0\1\0" + ((number % 1024) << 6 | kind << 3).to_bytes(2, "big") + bytes(4)

    coded = [picture(0, 1)]
    for number in range(2, 2400, 2):
        coded += [picture(number, 2), picture(number - 1, 3)]
    assert add_all(Mpeg2(None), coded).lost == ""
    assert add_all(Mpeg2(None), coded[:1201] + coded[1202:]).lost
    assert add_all(Mpeg2(None), [picture(0, 1)] + [picture(0, 2)] * 20).lost == ""
