"""How a video is held: the turn and the mirroring that its container asks a player for, as phones write them."""

from dataclasses import dataclass
from math import radians
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from tcar.data.container import open_container

# Matroska keeps the turn in the element Projection of its Tracks, which stand before the first frame.
_MATROSKA, _TRACKS, _PROJECTION = b"\x1a\x45\xdf\xa3", b"\x16\x54\xae\x6b", b"\x76\x70"
_ALIGNED = radians(1)  # players, too, turn by quarters only, and take what is this near for one


@dataclass(frozen=True)
class Orientation:
    """What makes the picture that is shown of the one that is stored; as stored where nothing is said.

    Rows and columns are exchanged (`transposed`) before either is reversed. `slanted`: the container asks for an angle
    that is no quarter turn, which is not followed.
    """

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False
    slanted: bool = False

    @classmethod
    def of_matrix(cls, matrix: np.ndarray) -> "Orientation":
        """Read the 3 x 3 matrix of ISO 14496-12: (x, y) is shown at (a x + c y, b x + d y), y pointing down."""
        (a, b), (c, d) = np.asarray(matrix, float).reshape(3, 3)[:2, :2]
        if max(abs(b), abs(c)) <= _ALIGNED * min(abs(a), abs(d)):
            return cls(False, bool(d < 0), bool(a < 0))
        if max(abs(a), abs(d)) <= _ALIGNED * min(abs(b), abs(c)):
            return cls(True, bool(b < 0), bool(c < 0))
        return cls(slanted=True)

    @property
    def turned(self) -> bool:
        """Whether what is shown is another picture than what is stored."""
        return self.transposed or self.rows_reversed or self.columns_reversed

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what is shown."""
        return (height, width) if self.transposed else (width, height)

    def __call__(self, image: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "H W *c"]:
        """Return a stored picture as it is shown."""
        image = image.swapaxes(0, 1) if self.transposed else image
        return np.ascontiguousarray(image[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1])


def orientation(path: Path, stream: int, first_frame: int | None) -> Orientation:
    """Find how a stream of a video is to be shown; as stored where its first frame cannot be decoded.

    first_frame: where that begins in the file, in bytes. PyAV tells the matrix of decoded frames alone, and those of
    the strict decoder of VP9 lack it: the first is decoded once more, unless the file's beginning rules a turn out.
    """
    with path.open("rb") as file:
        head = file.read(first_frame or 0)
    if head.startswith(_MATROSKA) and _TRACKS in head and _PROJECTION not in head:
        return Orientation()
    try:
        with open_container(path) as container:
            container.streams[stream].codec_context.thread_count = 1
            frame = next(container.decode(container.streams[stream]), None)
    except (av.FFmpegError, MemoryError):  # the reader itself says what is wrong with it
        return Orientation()
    matrix = frame and frame.side_data.get("DISPLAYMATRIX")
    return Orientation.of_matrix(np.frombuffer(bytes(matrix), np.int32)) if matrix else Orientation()
