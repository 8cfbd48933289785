"""The pictures of H.264 and H.265, as the headers of their slices number them (ITU-T H.264, 7.3 and 7.4.3; H.265).

`pictures_of` gives the reader of any codec.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tcar.data.pictures import Av1, Bits, Mpeg2, Mpeg4, OneEach, Pictures, Vp8, Vp9

_HEADER = 48  # bytes of a slice that hold all that is read of its header
_HIGH = frozenset((44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244))  # profiles that say more


def units(data: memoryview, length: int) -> Iterator[bytes]:
    """The first bytes of each unit (NAL): behind start codes, or with `length` behind a size of so many bytes."""
    at = 0
    if length:
        while at + length < len(data):
            size = int.from_bytes(data[at : at + length], "big")
            yield bytes(data[at + length : at + length + min(size, 4096)])
            at += length + size
        return
    content = bytes(data)
    while (at := content.find(b"\0\0\1", at) + 3) > 2:
        yield content[at : at + 4096].partition(b"\0\0\1")[0]


def _bits(unit: bytes) -> Bits:
    """The bits of a unit, without the bytes that keep it from looking like a start code."""
    return Bits(unit.replace(b"\0\0\3", b"\0\0"))


class _Sequence(NamedTuple):
    """What is needed of the parameters of a sequence (7.3.2.1.1)."""

    colours: bool
    colours_apart: bool
    number_bits: int
    order_bits: int
    orders: int  # how many differences of the order of showing a slice has, with that of a second field
    gaps: bool
    fields: bool


class _Set(NamedTuple):
    """What is needed of the parameters of a picture (7.3.2.2)."""

    sequence: int
    second_field: int
    references: tuple[int, int]
    weighted: tuple[bool, bool]  # the slices that are predicted, and those between two references
    redundant: int


class H264(Pictures):
    """Each picture that others refer to has the next frame_num, so that a missing one leaves a gap."""

    def configure(self, extradata: bytes) -> None:
        self._length, self._sequences, self._sets, self._last = 0, {}, {}, None
        if extradata[:1] == b"\1":
            self._length = (extradata[4] & 3) + 1
            at, many = 6, extradata[5] & 31
            for _ in range(many):
                at = self._stored(extradata, at)
            many, at = extradata[at], at + 1
            for _ in range(many):
                at = self._stored(extradata, at)
        else:
            for unit in units(memoryview(extradata), 0):
                self._parameters(unit)

    def _stored(self, extradata: bytes, at: int) -> int:
        end = at + 2 + int.from_bytes(extradata[at : at + 2], "big")
        self._parameters(extradata[at + 2 : end])
        return end

    def _parameters(self, unit: bytes) -> None:
        if unit[0] & 31 == 7:
            self._sequence(unit)
        elif unit[0] & 31 == 8:
            bits = _bits(unit[1:_HEADER])
            number, sequence = bits.golomb(), bits.golomb()
            second_field = bits.read(2) & 1
            bits.golomb()
            references, weighted = (bits.golomb() + 1, bits.golomb() + 1), (bool(bits.read(1)), bits.read(2) == 1)
            bits.golomb(), bits.golomb(), bits.golomb()
            self._sets[number] = _Set(sequence, second_field, references, weighted, bits.read(3) & 1)

    def _sequence(self, unit: bytes) -> None:
        bits = _bits(unit[4:])
        number, apart, chroma = bits.golomb(), False, 1
        if unit[1] in _HIGH:
            chroma = bits.golomb()
            apart = chroma == 3 and bool(bits.read(1))
            bits.golomb(), bits.golomb(), bits.read(1)
            if bits.read(1):
                for count in (16,) * 6 + (64,) * (6 if chroma == 3 else 2):
                    _skip_scaling(bits, count)
        number_bits = bits.golomb() + 4
        order, order_bits, orders = bits.golomb(), 0, 0
        if order == 0:
            order_bits = bits.golomb() + 4
        elif order == 1:
            orders = 1 - bits.read(1)
            bits.golomb(), bits.golomb()
            for _ in range(bits.golomb()):
                bits.golomb()
        bits.golomb()
        gaps = bool(bits.read(1))
        bits.golomb(), bits.golomb()
        colours, fields = chroma > 0 and not apart, not bits.read(1)
        self._sequences[number] = _Sequence(colours, apart, number_bits, order_bits, orders, gaps, fields)

    def shows(self, packet: memoryview) -> int | None:
        for unit in units(packet, self._length):
            kind = unit[0] & 31
            if kind in (7, 8):
                self._parameters(unit)
            elif kind in (1, 2, 5):
                return self._picture(unit)
        return 0

    def _picture(self, unit: bytes) -> int | None:
        bits, referred, new = _bits(unit[1:_HEADER]), unit[0] >> 5 & 3, unit[0] & 31 == 5
        bits.golomb(), bits.golomb()
        sequence = self._sequences[self._sets[bits.golomb()].sequence]
        if sequence.colours_apart:
            bits.read(2)
        number = bits.read(sequence.number_bits)
        field = sequence.fields and bits.read(1)
        begins = self._last is None and not new
        if not new and not begins and not sequence.gaps:
            expected = (self._last + 1) % (1 << sequence.number_bits)
            known = number == expected or number == self._last and (field or not referred)
            if not known and not (number == 1 and self._begins_anew(self._reference)):
                self._miss(len(self.shown), f"it has the number {number} and not {expected}")
        if referred or begins:
            self._last, self._reference = number, unit
        self.cut = self.cut or begins
        return None if field or begins else 1

    def _begins_anew(self, unit: bytes) -> bool:
        """Whether a picture that is no key frame makes the numbers begin again after it (operation 5 in 7.4.3.3)."""
        if unit[0] & 31 == 5:
            return False
        bits = _bits(unit[1:])
        bits.golomb()
        kind, chosen = bits.golomb() % 5, self._sets[bits.golomb()]
        sequence = self._sequences[chosen.sequence]
        bits.read(2 * sequence.colours_apart + sequence.number_bits)
        field = sequence.fields and bits.read(1)
        bits.read(bool(field) + sequence.order_bits)
        has_order = bool(sequence.order_bits or sequence.orders)
        for _ in range(sequence.orders + (has_order and chosen.second_field and not field) + chosen.redundant):
            bits.golomb()
        self._skip_references(bits, kind, chosen, sequence.colours)
        operation = bits.read(1) and bits.golomb()
        while operation not in (0, 5):
            for _ in range(2 if operation == 3 else 1):
                bits.golomb()
            operation = bits.golomb()
        return operation == 5

    @staticmethod
    def _skip_references(bits: Bits, kind: int, chosen: _Set, colours: bool) -> None:
        """Step over the lists of references of a slice (7.3.3.1) and their weights (7.3.3.2)."""
        between, predicted = kind == 1, kind in (0, 3)
        bits.read(between)
        counts = list(chosen.references[: 2 if between else 1]) if between or predicted else []
        if counts and bits.read(1):
            counts = [bits.golomb() + 1 for _ in counts]
        for _ in counts:
            if bits.read(1):
                while bits.golomb() != 3:
                    bits.golomb()
        if not (chosen.weighted[0] and predicted or chosen.weighted[1] and between):
            return
        for _ in range(1 + colours):
            bits.golomb()
        for _ in range(sum(counts)):
            for values in (2, 4)[: 1 + colours]:
                if bits.read(1):
                    for _ in range(values):
                        bits.golomb()


def _skip_scaling(bits: Bits, count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            code = bits.golomb()
            following = (last + (code + 1 >> 1) * (1 if code & 1 else -1)) % 256
        last = following or last


class Hevc(Pictures):
    """Leading pictures that a cut has taken the reference from (RASL) are decoded by nobody; libav finds lost ones."""

    def configure(self, extradata: bytes) -> None:
        self._length, self._leads, self._orphaned, self._told = 0, True, False, True
        if extradata[:1] != b"\1":
            for unit in units(memoryview(extradata), 0):
                self._parameters(unit)
            return
        self._length, at = (extradata[21] & 3) + 1, 23
        for _ in range(extradata[22]):
            many, at = int.from_bytes(extradata[at + 1 : at + 3], "big"), at + 3
            for _ in range(many):
                end = at + 2 + int.from_bytes(extradata[at : at + 2], "big")
                self._parameters(extradata[at + 2 : end])
                at = end

    def _parameters(self, unit: bytes) -> None:
        """A set of pictures may say that each has a flag of its own whether it is shown."""
        if unit[0] >> 1 & 63 == 34:
            bits = _bits(unit[2:_HEADER])
            bits.golomb(), bits.golomb(), bits.read(1)
            self._told = self._told and not bits.read(1)

    def shows(self, packet: memoryview) -> int | None:
        shown, seen = 0, False
        for unit in units(packet, self._length):
            kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
            self._parameters(unit)
            if kind in (36, 37):  # end of a sequence or of the stream
                self._leads = True
            elif kind < 32 and not layer and not seen:
                shown, seen = self._picture(kind), True
        return shown

    def _picture(self, kind: int) -> int | None:
        if 16 <= kind <= 23:
            self._orphaned, self._leads = self._leads or kind < 21, False
        elif self._leads:
            self.cut = self.cut or not self.shown
        return 0 if kind in (8, 9) and self._orphaned else 1 if self._told else None


_READERS = {"vp8": Vp8, "vp9": Vp9, "av1": Av1, "h264": H264, "hevc": Hevc}
_READERS |= {"mpeg1video": Mpeg2, "mpeg2video": Mpeg2, "mpeg4": Mpeg4}
_WHOLE = ("dnxhd", "dvvideo", "ffv1", "ffvhuff", "huffyuv", "mjpeg", "png", "prores", "rawvideo")
_READERS |= dict.fromkeys(_WHOLE, OneEach)
_READERS |= dict.fromkeys(("flv", "h263", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "wmv1", "wmv2"), OneEach)


def pictures_of(codec: str, extradata: bytes | None) -> Pictures:
    """The reader of the packets of a codec, by the name of its decoder in libav."""
    return _READERS.get(codec, Pictures)(extradata)
