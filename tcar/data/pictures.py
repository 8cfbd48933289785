"""What the packets of a codec tell without being decoded: how many pictures each shows, and whether one is missing.

Read from the headers of the pictures, as the standards number their bits: RFC 6386 (VP8), the VP9 and AV1 bitstream
specifications, ISO/IEC 14496-2 (MPEG-4) and 13818-2 (MPEG-1 and 2). `tcar.data.slices` has H.264 and H.265.
"""

import itertools
import statistics

_START = b"\0\0\1"  # before each part of an MPEG stream
_DAMAGED = (LookupError, ValueError)  # what reading a damaged header raises; the decoder has to say what it makes of it
_INTRA, _BETWEEN = 1, 3  # picture_coding_type: without a reference, between two


class Pictures:
    """The pictures of a stream, packet by packet in the file's order; here of a codec that nothing is known of.

    `shown` has the number of pictures that each packet shows, or None where it has to be decoded to tell. `lost` says
    before which packet a picture is missing that later ones were predicted from; empty while there is no proof. `cut`
    says that the stream begins in the middle of another one, `packed` that packets hold several pictures, so that the
    times of packets are not those of pictures.
    """

    def __init__(self, extradata: bytes | None):
        self.shown: list[int | None] = []
        self.lost, self.cut, self.packed = "", False, False
        try:
            self.configure(extradata or b"")
        except _DAMAGED:
            self.shows = lambda packet: None

    def add(self, packet: memoryview) -> None:
        """Take the next packet."""
        try:
            self.shown.append(self.shows(packet))
        except _DAMAGED:
            self.shown.append(None)

    def configure(self, extradata: bytes) -> None:
        """Take the headers that the container keeps for the whole stream."""

    def shows(self, packet: memoryview) -> int | None:
        """How many pictures a packet shows, None: it does not tell."""
        return None

    def finish(self) -> None:
        """Judge what only the whole stream tells."""

    def _miss(self, packet: int, sign: str) -> None:
        self.lost = self.lost or f"a frame is missing before packet {packet}: {sign}"


class OneEach(Pictures):
    """Codecs whose packets are one picture each, always shown."""

    def shows(self, packet: memoryview) -> int:
        return 1


class Vp8(Pictures):
    def shows(self, packet: memoryview) -> int:
        return packet[0] >> 4 & 1


class Vp9(Pictures):
    """A packet may hold several frames, of which its index at the end tells the sizes; players show one of them."""

    def shows(self, packet: memoryview) -> int:
        if self._shown(packet[0]):
            return 1
        mark = packet[-1]
        count, width = (mark & 7) + 1, (mark >> 3 & 3) + 1
        begin = len(packet) - 2 - width * count
        if mark >> 5 != 0b110 or begin < 0 or packet[begin] != mark:
            return 0
        starts = range(begin + 1, begin + 1 + width * count, width)
        sizes = [int.from_bytes(packet[start : start + width], "little") for start in starts]
        places = itertools.accumulate(sizes[:-1], initial=0)
        return int(any(self._shown(packet[place]) for place, size in zip(places, sizes, strict=True) if size))

    @staticmethod
    def _shown(head: int) -> bool:
        """The bits show_existing_frame and show_frame, one place further in profile 3."""
        further = head & 0x30 == 0x30
        return bool(head << further & 0b1010)


class Av1(Pictures):
    """A packet is a row of units (OBU), whose frame headers begin with show_existing_frame, type and show_frame."""

    def shows(self, packet: memoryview) -> int:
        at = 0
        while at < len(packet):
            kind, extended, sized = packet[at] >> 3 & 15, packet[at] >> 2 & 1, packet[at] >> 1 & 1
            at, size, shift = at + 1 + extended, 0, 0
            while sized:
                size |= (packet[at] & 0x7F) << shift
                sized, shift, at = packet[at] >> 7, shift + 7, at + 1
            if kind in (3, 6) and packet[at] & 0b10010000:
                return 1
            at += size or len(packet)
        return 0


class Mpeg2(Pictures):
    """MPEG-1 and 2: the pictures of a group are numbered in the order of showing; a missing one leaves a gap."""

    def configure(self, extradata: bytes) -> None:
        self._last = self._before = None  # numbers of the last two references of this group
        self._seen: set[int] = set()  # numbers of this group
        self._references = 0  # in all, from the first intra picture on
        self._runs: list[list[int]] = []  # of two references: packet, distance, pictures seen between and the second
        self._faults: list[tuple[int, str]] = []  # packet, what is wrong with its number

    def shows(self, packet: memoryview) -> int | None:
        data = bytes(packet)
        place = data.find(_START + b"\0")
        if place < 0 or data.find(_START + b"\0", place + 4) >= 0:
            return None
        head = int.from_bytes(data[place + 4 : place + 6], "big")
        number, kind = head >> 6, head >> 3 & 7
        extension = data.find(_START + b"\xb5", place)
        if extension >= 0 and data[extension + 4] >> 4 == 8 and data[extension + 6] & 3 != 3:
            return None  # a field
        if not self._references and kind != _INTRA:
            self.cut = True
            return 0
        if 0 <= data.find(_START + b"\xb8") < place or kind == _INTRA and number <= (self._last or 0):
            self._last, self._before, self._seen = None, None, set()
        self._number(number, kind)
        # without the group before, no decoder can show pictures between it and the first one
        return None if kind == _BETWEEN and self._references < 2 else 1

    def _number(self, number: int, kind: int) -> None:
        if self._last is not None:
            number += 1024 * round((self._last - number) / 1024)  # they have ten bits
        if number in self._seen:
            self._faults.append((len(self.shown), f"the number {number} was there before in its group"))
        self._seen.add(number)
        if kind == _BETWEEN:
            if number > self._last or self._before is not None and number < self._before:
                self._faults.append((len(self.shown), f"number {number} is not between its references"))
            if self._runs:
                self._runs[-1][2] += 1
            return
        self._references += 1
        self._before, self._last = self._last, number
        if self._before is not None and self._before < number:
            self._runs.append([len(self.shown), number - self._before, 1])

    def finish(self) -> None:
        """Two references further apart than usual, with a number missing between: it was a reference itself."""
        usual = statistics.mode(distance for _, distance, _ in self._runs) if self._runs else 0
        for packet, distance, seen in self._runs:
            if distance > max(usual, seen):
                self._faults.append((packet, f"{distance - seen} numbers are missing"))
        if self._faults and self._runs:  # there are none where the encoder leaves all numbers at zero
            self._miss(*min(self._faults))


class Mpeg4(Pictures):
    """MPEG-4: encoders that turn the rounding with each predicted picture leave two alike where one is missing.

    libav counts an intra picture as rounded down, others as rounded up.
    """

    _FRESH, _UNKNOWN = -1, -2  # of an intra picture, and of one whose header was not read

    def configure(self, extradata: bytes) -> None:
        self._clock_bits, self._before = 0, None  # the rounding of the reference before, or one of those below
        self._turns: list[tuple[int, int, int]] = []  # packet, rounding before and then
        self._of_libav = b"Lavc" in extradata
        self._layer(extradata)

    def _layer(self, data: bytes) -> None:
        """Read the bits that a time takes from a header of the layer, where there is one."""
        place = next((at for at in range(len(data) - 4) if data[at : at + 3] == _START and data[at + 3] >> 4 == 2), -1)
        if place < 0:
            return
        bits = Bits(data[place + 4 : place + 64])
        bits.read(9)
        if bits.read(1):
            bits.read(7)
        if bits.read(4) == 15:
            bits.read(16)
        if bits.read(1):
            bits.read(3)
            if bits.read(1):
                bits.read(79)
        bits.read(3)
        self._clock_bits = max(1, (bits.read(16) - 1).bit_length())

    def shows(self, packet: memoryview) -> int | None:
        data = bytes(packet)
        place = data.find(_START + b"\xb6")
        if place < 0 or data.find(_START + b"\xb6", place + 4) >= 0:
            self.packed = self.packed or place >= 0
            return None
        self._layer(data[:place])
        self._of_libav = self._of_libav or b"Lavc" in data[:place]
        bits = Bits(data[place + 4 : place + 24])
        kind = bits.read(2) + 1
        while bits.read(1):
            pass
        bits.read(2 + self._clock_bits)
        coded = bits.read(1)
        if self._before is None and kind != _INTRA:
            self._miss(len(self.shown), "it is predicted from one")
        if kind == _INTRA:
            self._before = self._FRESH
        elif kind != _BETWEEN:
            rounding = bits.read(1) if coded and kind == 2 else self._UNKNOWN
            if self._UNKNOWN not in (rounding, self._before or 0):
                self._turns.append((len(self.shown), self._before or 0, rounding))
            self._before = rounding
        return 1 if coded else None  # what is shown instead is up to the decoder

    def finish(self) -> None:
        alike = min((self._alike(intra) for intra in ((0,) if self._of_libav else (0, 1))), key=len)
        if alike and len(alike) <= 0.1 * len(self._turns) + 1 < len(self._turns):
            self._miss(alike[0], "two in a row are rounded alike")

    def _alike(self, intra: int) -> list[int]:
        return [packet for packet, before, then in self._turns if (intra if before == self._FRESH else before) == then]


class Bits:
    """Numbers out of the bits of a header."""

    def __init__(self, data: bytes):
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        """Read an unsigned number of `count` bits; raises ValueError where the header ends."""
        self._left -= count
        if self._left < 0:
            raise ValueError("the header ends")
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """Read an unsigned number in the code of Exp-Golomb, ue(v) in H.264 and H.265."""
        zeros = self._left - (self._value & (1 << self._left) - 1).bit_length()
        self.read(zeros)
        return self.read(zeros + 1) - 1
