"""Sound video files that differ from the usual one: each maker writes one and says how many frames a player shows.

By what is unusual: `DECLARED` in a count or a duration, `UNCLAIMED` in bytes that are no frame's, `HIDDEN` in packets
that are not one frame each.
"""

import struct
from functools import partial
from pathlib import Path

import av
from videos import copy_packets, write_video

SMALL = {"width": 96, "height": 64, "rate": 25}
LATE, PAUSED = list(range(125, 156)), [*range(20), *range(61, 72)]
VP8 = {"codec": "libvpx", "b": "200000", "deadline": "realtime", "cpu-used": "8"}
VP9 = {"codec": "libvpx-vp9", "crf": "30", "deadline": "realtime", "cpu-used": "8"}
H264, H264_B = {"codec": "libx264", "bf": "0", "g": "10"}, {"codec": "libx264", "bf": "2", "g": "10"}
HEVC = {"codec": "libx265", "x265-params": "bframes=3:keyint=12:min-keyint=12:scenecut=0:open-gop=1:log-level=none"}
MPEG4 = {"codec": "mpeg4", "qscale": "3"}


def written(name: str, options: dict, folder: Path, frames: int = 31) -> tuple[Path, int]:
    return write_video(folder / name, frames, **SMALL, **options), frames


def trimmed(name: str, options: dict, start: int, shown: int, folder: Path) -> tuple[Path, int]:
    """A lossless trim: the edit list shows `shown` frames from `start` on, the other samples stay."""
    path = write_video(folder / name, 50, **SMALL, **options)
    content = bytearray(path.read_bytes())
    movie, track, edit, media = (content.index(box) for box in (b"mvhd", b"tkhd", b"elst", b"mdhd"))
    second, units = (int.from_bytes(content[at + 16 : at + 20], "big") for at in (movie, media))
    for at in (movie + 20, track + 24, edit + 12):
        content[at : at + 4] = struct.pack(">I", second * shown // 25)
    begin = int.from_bytes(content[edit + 16 : edit + 20], "big") + units * start // 25
    content[edit + 16 : edit + 20] = struct.pack(">I", begin)
    path.write_bytes(content)
    return path, shown


def segment(options: dict, folder: Path) -> tuple[Path, int]:
    """The header and the second of the fragments of a film, as streaming delivers them."""
    muxer = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    whole = write_video(folder / "whole.mp4", 40, **SMALL, muxer=muxer, **options)
    content, kept, fragments, at = whole.read_bytes(), b"", 0, 0
    while at < len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        fragments += kind == b"moof"
        if kind in (b"ftyp", b"moov") or kind in (b"moof", b"mdat") and fragments == 2:
            kept += content[at : at + length]
        at += length
    (folder / "segment.mp4").write_bytes(kept)
    return folder / "segment.mp4", 10


def still_end(name: str, folder: Path) -> tuple[Path, int]:
    """The last frame stands for four seconds."""
    source = write_video(folder / f"source{Path(name).suffix}", **SMALL, **H264)
    with av.open(str(source)) as read, av.open(str(folder / name), "w") as copy:
        stream = copy.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        packets[-1].duration *= 100
        for packet in packets:
            packet.stream = stream
            copy.mux(packet)
    return folder / name, 31


def length_of_ivf(declared: int, folder: Path) -> tuple[Path, int]:
    """Writers that do not go back to the header leave its length at nothing or at everything."""
    path = write_video(folder / "clip.ivf", 12, **SMALL, **VP8)
    content = bytearray(path.read_bytes())
    content[24:28] = declared.to_bytes(4, "little")
    path.write_bytes(content)
    return path, 12


DECLARED = {
    "MP4 trimmed at a key frame": partial(trimmed, "clip.mp4", {"codec": "libx264", "bf": "0", "g": "25"}, 0, 25),
    "MP4 trimmed within a group": partial(trimmed, "clip.mp4", H264_B, 17, 25),
    "QuickTime trimmed": partial(trimmed, "clip.mov", H264_B, 12, 30),
    "MP4 of VP9 trimmed": partial(trimmed, "clip.mp4", VP9, 9, 20),
    "MP4 of MPEG-4 trimmed": partial(trimmed, "clip.mp4", MPEG4 | {"bf": "2"}, 9, 20),
    "AVI with skipped frames": partial(written, "clip.avi", MPEG4 | {"times": [*range(15), *range(17, 33)]}),
    "AVI at a variable rate": partial(written, "clip.avi", H264_B | {"times": [n * 5 // 2 for n in range(31)]}),
    "AVI that starts late": partial(written, "clip.avi", {"codec": "mjpeg", "pixels": "yuvj420p", "times": LATE}),
    "WebM that starts late": partial(written, "clip.webm", VP9 | {"times": LATE}),
    "Matroska of H.264 that starts late": partial(written, "clip.mkv", H264_B | {"times": LATE}),
    "WebM with a pause": partial(written, "clip.webm", VP9 | {"times": PAUSED}),
    "MP4 with a pause": partial(written, "clip.mp4", H264_B | {"times": PAUSED}),
    "ASF with a pause": partial(written, "clip.asf", {"codec": "wmv2", "times": PAUSED}),
    "ASF with B-frames": partial(written, "clip.asf", H264_B),
    "FLV with B-frames": partial(written, "clip.flv", H264_B),
    "FLV with B-frames that starts late": partial(written, "clip.flv", H264_B | {"times": LATE}),
    "MPEG-TS with a pause": partial(written, "clip.ts", H264_B | {"times": PAUSED}),
    "Matroska with a still end": partial(still_end, "clip.mkv"),
    "MP4 with a still end": partial(still_end, "clip.mp4"),
    "a segment of H.264": partial(segment, H264_B),
    "a segment of VP9": partial(segment, VP9 | {"g": "10"}),
    "IVF that starts late": partial(written, "clip.ivf", VP9 | {"times": LATE}),
    "IVF without a length": partial(length_of_ivf, 0),
    "IVF of endless length": partial(length_of_ivf, 0xFFFFFFFF),
    "NUT with a pause": partial(written, "clip.nut", H264_B | {"times": PAUSED}),
}

_LONG = "x" * 60_000
UNCLAIMED = {
    "VP9 with transparency": partial(written, "clip.webm", VP9 | {"pixels": "yuva420p", "auto-alt-ref": "0"}),
    "VP8 with transparency": partial(
        written, "clip.webm", VP8 | {"pixels": "yuva420p", "auto-alt-ref": "0"}, frames=10
    ),
    "WebM with space for an index": partial(written, "clip.webm", VP9 | {"muxer": {"reserve_index_space": "60000"}}),
    "Matroska with its index in front": partial(written, "clip.mkv", H264 | {"muxer": {"cues_to_front": "1"}}),
    "Matroska in small clusters": partial(written, "clip.mkv", H264_B | {"muxer": {"cluster_time_limit": "80"}}),
    "Matroska with an attachment": partial(written, "clip.mkv", H264_B | {"attachment": bytes(range(256)) * 400}),
    "live WebM": partial(written, "clip.webm", VP9 | {"muxer": {"live": "1"}}),
    "WebM with a long comment": partial(written, "clip.webm", VP9 | {"comment": _LONG}),
    "MP4 with a long comment": partial(written, "clip.mp4", H264 | {"comment": _LONG}),
    "AVI with a long comment": partial(written, "clip.avi", MPEG4 | {"comment": _LONG}),
    "FLV with a long comment": partial(written, "clip.flv", H264 | {"comment": _LONG}),
    "Ogg with a long comment": partial(written, "clip.ogg", VP8 | {"comment": _LONG}),
    "ASF with a long comment": partial(written, "clip.asf", {"codec": "wmv2", "comment": _LONG[:30_000]}),
}


def hidden(name: str, options: dict, bit: int, numbers: tuple[int, ...], folder: Path) -> tuple[Path, int]:
    """Take back the bit show_frame of some packets: they are decoded and never shown."""
    source = write_video(folder / "source.webm", **SMALL, **options)

    def hide(number: int, content: bytes) -> bytes:
        return bytes([content[0] & ~bit]) + content[1:] if number in numbers else content

    return copy_packets(source, folder / name, hide), 31 - len(numbers)


def hidden_av1(folder: Path) -> tuple[Path, int]:
    """Frames that AV1 keeps for reference, in packets of their own."""
    source = write_video(folder / "source.mkv", 24, **SMALL, codec="libsvtav1", preset="10")
    target = folder / "clip.mkv"
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        copy = written.add_stream("libsvtav1", rate=25)
        copy.width, copy.height, copy.pix_fmt = 96, 64, "yuv420p"
        split, parts = av.bitstream.BitStreamFilterContext("av1_frame_split", "av1"), 0
        for packet in (packet for packet in read.demux(video=0) if packet.size):
            time, base = packet.pts, packet.time_base
            for part in split.filter(packet):
                part.pts = part.dts = time
                part.time_base, part.stream, parts = base, copy, parts + 1
                written.mux(part)
    assert parts > 30
    return target, 24


def cut_before(name: str, options: dict, first: int | None, folder: Path) -> Path:
    """The packets from number `first` on, or for None from the second key frame on."""
    source = write_video(folder / f"source{Path(name).suffix}", 40, **SMALL, **options)
    with av.open(str(source)) as read:
        keys = [n for n, packet in enumerate(p for p in read.demux(video=0) if p.size) if packet.is_keyframe]
    begin = keys[1] if first is None else first
    return copy_packets(source, folder / name, lambda number, content: content if number >= begin else None)


def packed_b_frames(name: str, folder: Path) -> tuple[Path, int]:
    """MPEG-4 as DivX put it into AVI: two pictures in one packet, and then one that says that it is not coded."""
    source = write_video(folder / "source.avi", 21, **SMALL, **MPEG4, bf="1")
    with av.open(str(source)) as read:
        pictures = [bytes(packet) for packet in read.demux(video=0) if packet.size]
    between = [picture[picture.index(b"\0\0\1\xb6") + 4] >> 6 == 2 for picture in pictures] + [False]
    packets: list[bytes] = []
    for number, picture in enumerate(pictures):
        if not between[number]:
            packets.append(picture)
        else:
            packets[-1] += picture
            packets.append(b"\0\0\1\xb6\x50\x5f")
    at = packets[0].index(b"\0\0\1\xb3")
    packets[0] = packets[0][:at] + b"\0\0\1\xb2DivX503b1393p\0" + packets[0][at:]
    return copy_packets(source, folder / name, lambda number, _: packets[number]), 21


def fields(folder: Path) -> tuple[Path, int]:
    """H.264 with a picture for each of the two fields of a frame, of blocks that are stored as they are (I_PCM)."""

    def golomb(number: int) -> str:
        return f"{number + 1:b}".rjust(2 * (number + 1).bit_length() - 1, "0")

    def pack(bits: str) -> bytes:
        bits += "0" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big")

    zero = golomb(0)
    sequence = f"{77:08b}{0:08b}{30:08b}" + zero * 4 + golomb(1) + "0" + golomb(1) + zero + "001001"
    content = b"\0\0\1\x67" + pack(sequence) + b"\0\0\1\x68" + pack(zero * 2 + "00" + zero * 3 + "0001110001")
    for number in range(8):
        for bottom in (0, 1):
            new = number == 0 and not bottom
            head = zero + golomb(7) + zero + f"{number:04b}" + "1" + str(bottom) + (zero if new else "")
            head += f"{2 * number + bottom:04b}" + ("00" if new else "0") + zero
            block = bytes([40 + 20 * number + 5 * bottom]) * 256 + bytes([128]) * 128
            content += b"\0\0\1" + (b"\x65" if new else b"\x61") + pack(head + golomb(25)) + block
            content += pack(golomb(25)) + block + b"\x80"
    (folder / "clip.h264").write_bytes(content)
    return folder / "clip.h264", 8


HIDDEN = {
    "VP8 with hidden frames": partial(hidden, "clip.webm", VP8, 0x10, (10, 20)),
    "VP8 with hidden frames in IVF": partial(hidden, "clip.ivf", VP8, 0x10, (5, 6)),
    "VP9 with hidden key frames": partial(hidden, "clip.webm", VP9 | {"g": "10"}, 0x02, (10, 20)),
    "VP9 with hidden key frames in MP4": partial(hidden, "clip.mp4", VP9 | {"g": "10"}, 0x02, (10,)),
    "AV1 with hidden frames": hidden_av1,
    "MPEG-4 with packed B-frames": partial(packed_b_frames, "clip.avi"),
    "MPEG-4 with packed B-frames in Matroska": partial(packed_b_frames, "clip.mkv"),
    "H.264 in fields": fields,
}
# How many frames of these are shown only a decoder knows: those before the cut that others need are missing.
CUT = {
    "H.265 at an open group in MP4": partial(cut_before, "clip.mp4", HEVC, None),
    "H.265 at an open group in MPEG-TS": partial(cut_before, "clip.ts", HEVC, None),
    "H.264 at an open group": partial(
        cut_before, "clip.mkv", {"codec": "libx264", "bf": "3", "g": "12", "x264-params": "open-gop=1:scenecut=0"}, None
    ),
    "MPEG-2 at an open group": partial(cut_before, "clip.ts", {"codec": "mpeg2video", "bf": "2", "g": "12"}, None),
    "H.264 within a group": partial(cut_before, "clip.ts", H264_B, 5),
    "H.265 within a group": partial(cut_before, "clip.ts", HEVC, 5),
    "MPEG-2 within a group": partial(cut_before, "clip.ts", {"codec": "mpeg2video", "bf": "2", "g": "12"}, 5),
}
