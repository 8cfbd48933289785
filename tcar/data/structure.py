"""Whether the structure of a video file is whole: elements that end beyond the file, bytes that are in no element.

Only what a container itself says of its bytes is proof of a loss. The formats are read as far as they frame their
data: Matroska (RFC 9559), MP4 (ISO/IEC 14496-12), AVI, FLV, IVF, ASF, Ogg (RFC 3533) and MPEG-2 (ISO/IEC 13818-1).
"""

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tcar.data.container import VideoError

Read = Callable[[int, int], bytes]  # count and place to bytes, fewer at the end of the file


def check_structure(path: Path, file_format: str, packets: int, stream: int) -> None:
    """Walk the structure of a file in libav's `file_format`, of whose stream number `stream` `packets` were read.

    Raises VideoError, truncated, where bytes are missing or frames were stepped over; other formats pass.
    """
    check = _CHECKS.get(file_format.split(",")[0])
    if check is None:
        return
    with path.open("rb", buffering=0) as file:
        try:
            blocks = check(partial(os.pread, file.fileno()), path.stat().st_size, stream)
        except (ValueError, struct.error, IndexError, RecursionError, OSError) as error:
            detail = str(error) if type(error) is ValueError else "the header of an element cannot be read"
            raise VideoError(path, "truncated", detail) from error
    if packets < blocks:
        detail = f"{blocks - packets} of {blocks} blocks in the file belong to no frame that can be read"
        raise VideoError(path, "truncated", detail)


def _within(end: int, limit: int, name: str, place: int) -> None:
    if end > limit:
        raise ValueError(f"{name} at byte {place} ends {end - limit} bytes beyond what holds it")


_WINDOW = 4 * 2**20  # bytes of a cluster that is read at once

# Matroska: the names of elements.
_SEGMENT, _CLUSTER, _TRACKS, _ENTRY, _NUMBER, _TYPE = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xD7, 0x83
_VOID, _SIMPLE_BLOCK, _BLOCK, _GROUP, _ENCRYPTED = 0xEC, 0xA3, 0xA1, 0xA0, 0xAF
_KINDS = (1, 2, 17, 33)  # pictures, sound, words and data; libav has no stream for other tracks
_ANYWHERE = {_VOID, 0xBF, 0x1B538667}  # padding, checksums and signatures
_IN_SEGMENT = {_CLUSTER, _TRACKS, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367} | _ANYWHERE
_IN_CLUSTER = {0xE7, 0xA7, 0xAB, 0x5854, _SIMPLE_BLOCK, _GROUP, _ENCRYPTED} | _ANYWHERE


def _elements(read: Read, start: int, end: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Name, begin and end of the content (-1: not known), and the first bytes of each EBML element in a row."""
    while start < end:
        head = read(24, start)
        width = 9 - head[0].bit_length()
        if width > 4:
            raise ValueError(f"the bytes at {start} belong to no frame and no other element")
        length = 9 - head[width].bit_length()
        body, limit = start + width + length, 1 << 7 * length
        size = int.from_bytes(head[width : width + length], "big") & limit - 1
        name = int.from_bytes(head[:width], "big")
        if size == limit - 1:
            if name not in (_SEGMENT, _CLUSTER):
                raise ValueError(f"the element at byte {start} has no length")
            yield name, body, -1, head[width + length :]
            return
        _within(body + size, end, "the element", start)
        yield name, body, body + size, head[width + length :]
        start = body + size


def _matroska(read: Read, size: int, stream: int) -> int:
    blocks, tracks = Counter(), []
    for name, body, end, _ in _elements(read, 0, size):
        if name == _SEGMENT:
            _segment(read, body, size if end < 0 else end, blocks, tracks)
            break  # what follows is no part of the film
    # libav numbers its streams as the tracks are, attached pictures after them
    return blocks[tracks[stream]] if stream < len(tracks) else 0


def _segment(read: Read, start: int, end: int, blocks: Counter, tracks: list[int]) -> None:
    while start < end:
        for name, body, stop, _ in _elements(read, start, end):
            if name not in _IN_SEGMENT:
                raise ValueError(f"the bytes before {body} belong to no frame and no other element")
            if name == _TRACKS:
                for _, begin, finish, _ in (entry for entry in _elements(read, body, stop) if entry[0] == _ENTRY):
                    inner = {key: read(to - at, at) for key, at, to, _ in _elements(read, begin, finish) if to - at < 9}
                    number, kind = (int.from_bytes(inner.get(key, b""), "big") for key in (_NUMBER, _TYPE))
                    if kind in _KINDS:
                        tracks.append(number)
            elif name == _CLUSTER:
                stop = _cluster(read, body, stop, end, blocks)
            start = stop if stop >= 0 else end


def _cluster(read: Read, start: int, stop: int, end: int, blocks: Counter) -> int:
    """Count the blocks of every track in a cluster and return where it ends, which one of unknown size leaves open."""
    if 0 <= stop < start + _WINDOW:  # one read instead of one for every block
        content = read(stop - start, start)
        read = partial(_slice, content, start)
    for name, body, after, head in _elements(read, start, end if stop < 0 else stop):
        if stop < 0 and name in _IN_SEGMENT - _IN_CLUSTER:
            return start
        if name not in _IN_CLUSTER:
            raise ValueError(f"the bytes before {body} belong to no frame and no other element")
        if name == _VOID and read(after - body, body).strip(b"\0"):
            raise ValueError(f"{after - body} bytes at {body} belong to no frame: they are marked as padding")
        if name == _GROUP:
            inner = [(at, to, first) for key, at, to, first in _elements(read, body, after) if key == _BLOCK]
            if not inner:
                raise ValueError(f"{after - body} bytes at {body} belong to no frame: a group without its block")
            _count(*inner[0], blocks)
        elif name == _SIMPLE_BLOCK:
            _count(body, after, head, blocks)
        start = after
    return start


def _slice(content: bytes, start: int, count: int, place: int) -> bytes:
    return content[place - start : place - start + count]


def _count(body: int, end: int, head: bytes, blocks: Counter) -> None:
    width = 9 - head[0].bit_length()
    if end - body > width + 3:
        blocks[int.from_bytes(head[:width], "big") & (1 << 7 * width) - 1] += 1


def _mp4(read: Read, size: int, _: int) -> int:
    start, in_fragments = 0, False
    while start + 8 <= size:
        head = read(16, start)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        in_fragments = in_fragments or name == b"moof"
        if not name.isalnum() or 0 < length < 8:
            # The index of a film that is in one piece has the place of every frame; what follows is no part of it.
            if in_fragments and read(size - start, start).strip(b"\0"):
                raise ValueError(f"the bytes at {start} belong to no frame and no other box")
            break
        if name in (b"moov", b"mdat") or in_fragments:
            _within(start + length, size, f"the box {name.decode()}", start)
        start = start + length if length else size
    return 0


def _avi(read: Read, size: int, stream: int) -> int:
    start, blocks = 0, 0
    while start + 12 <= size and read(4, start) == b"RIFF":
        length = int.from_bytes(read(4, start + 4), "little")
        # a recording that was never finished does not know its length
        end = size if length in (0, 0xFFFFFFFF) else start + 8 + length
        _within(end, size + 8, "the list RIFF", start)  # some count its header as well
        blocks += _chunks(read, start + 12, min(end, size), b"%02d" % stream)
        start = end + end % 2
    return blocks


def _chunks(read: Read, start: int, end: int, stream: bytes, outside: bool = True) -> int:
    """Count the chunks of a stream that hold anything, in a row of chunks, `outside` or in the lists of frames."""
    blocks = 0
    while start + 8 <= end:
        name, length = struct.unpack("<4sI", read(8, start))
        if not name.isalnum() and name != b"rec ":
            # some leave out the byte that fills an odd length up
            name, length = struct.unpack("<4sI", read(8, start - 1))
            start -= 1
            if not name.isalnum() and outside:
                break  # what fills the file up
            if not name.isalnum():
                raise ValueError(f"the bytes at {start} belong to no frame and no other chunk")
        if name == b"LIST" and length == 4 and read(4, start + 8) == b"movi":
            length = end - start - 8  # never finished
        _within(start + 8 + length, end + 1, f"the chunk {name.decode()}", start)
        if name == b"LIST":
            if read(4, start + 8) in (b"movi", b"rec "):
                blocks += _chunks(read, start + 12, start + 8 + length, stream, outside=False)
        elif length and name[:2] == stream and name[2:] in (b"dc", b"db"):
            blocks += 1
        start += 8 + length + length % 2
    return blocks


def _flv(read: Read, size: int, _: int) -> int:
    start = int.from_bytes(read(4, 5), "big") + 4
    _, name, number = read(4096, start).partition(b"filesize\0")
    if name:
        _within(int(struct.unpack(">d", number[:8])[0]), size, "the film", 0)
    while start < size:
        length = 11 + int.from_bytes(read(3, start + 1), "big")
        _within(start + length, size, "the tag", start)
        tail = read(5, start + length)
        # Each is followed by its length, which some get wrong, and by another tag of sound, pictures or words.
        if int.from_bytes(tail[:4], "big") != length and tail[4:] not in (b"", b"\x08", b"\x09", b"\x12"):
            raise ValueError(f"the bytes at {start + length} belong to no frame and no other tag")
        start += length + 4
    return 0


def _ivf(read: Read, size: int, _: int) -> int:
    head = read(32, 0)
    start, times = int.from_bytes(head[6:8], "little"), []
    while start < size:
        length, time = struct.unpack("<IQ", read(12, start))
        _within(start + 12 + length, size, "the frame", start)
        times.append(time)
        start += 12 + length
    packets, span = len(times), max(times, default=0) - min(times, default=0)
    declared = int.from_bytes(head[24:28], "little")  # of frames, or of the units their times are in
    if declared != 0xFFFFFFFF and declared > max(packets, span + span // max(1, packets - 1)) + 1:
        raise ValueError(f"{packets} of {declared} declared frames are in the file")
    return packets


_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _asf(read: Read, size: int, _: int) -> int:
    head = read(min(size, int.from_bytes(read(8, 16), "little")), 0)
    place = head.find(_FILE_PROPERTIES)
    if place < 0:
        raise ValueError("its header has no properties of the file")
    declared, flags = struct.unpack("<40xQ40xI", head[place : place + 92])
    if not flags & 1:  # a broadcast does not know its length
        _within(declared, size, "the file", 0)
    return 0


def _ogg(read: Read, size: int, _: int) -> int:
    start, pages = 0, {}
    while start < size:
        head = read(27 + 255, start)
        if head[:4] != b"OggS":
            raise ValueError(f"the bytes at {start} belong to no page")
        serial, number = struct.unpack("<II", head[14:22])
        if number != pages.get(serial, number - 1) + 1:
            raise ValueError(f"before byte {start} a page is missing")
        pages[serial] = number
        end = start + 27 + head[26] + sum(head[27 : 27 + head[26]])
        _within(end, size, "the page", start)
        start = end
    return 0


def _mpeg(read: Read, size: int, _: int) -> int:
    """A row of packs and packets (ISO/IEC 13818-1, 2.5), which a film on a disc has headers before."""
    start = 0 if read(4, 0) == b"\0\0\1\xba" else size
    while start < size:
        head = read(14, start)
        if head[:3] != b"\0\0\1":
            if read(size - start, start).strip(b"\0"):
                raise ValueError(f"the bytes at {start} belong to no packet")
            break
        if head[3] == 0xBA:
            length = 14 + (head[13] & 7) if head[4] >> 6 == 1 else 12
        else:
            length = 4 if head[3] == 0xB9 else 6 + int.from_bytes(head[4:6], "big")
        _within(start + length, size, "the packet", start)
        start += length
    return 0


def _mpegts(read: Read, size: int, _: int) -> int:
    head = read(204 * 3, 0)
    for length, sync in ((188, 0), (192, 4), (204, 0)):
        if head[sync::length][:3] == b"GGG" and size % length:
            raise ValueError(f"its last packet has {size % length} of {length} bytes")
    return 0


_CHECKS = {"matroska": _matroska, "mov": _mp4, "avi": _avi, "ivf": _ivf, "asf": _asf}
# The structure of these proves nothing of their end: a file may be cut between two elements.
SELF_CHECKED = tuple(_CHECKS)
_CHECKS |= {"flv": _flv, "ogg": _ogg, "mpeg": _mpeg, "mpegts": _mpegts}
