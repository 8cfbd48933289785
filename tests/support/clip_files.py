"""Clips of one colour each, for tests of what trains on clips."""

from pathlib import Path

import av
import numpy as np

from tcar.data.ssv2 import Clip

RED, BLUE = (170, 90, 90), (90, 90, 170)


def coloured_clips(folder: Path, count: int) -> list[Clip]:
    """Red clips of class 0 and blue ones of class 1, in turn."""
    return [
        Clip(str(i), write_clip(folder / f"{i}.webm", (RED, BLUE)[i % 2], seed=i), i % 2, "", "", ())
        for i in range(count)
    ]


def write_clip(path: Path, colour: tuple[int, int, int], frames: int = 8, seed: int = 0,
               size: tuple[int, int] = (64, 48)) -> Path:  # fmt: skip
    """A clip of one colour with some noise, not square; `size` is its width and height."""
    noise = np.random.default_rng(seed).integers(-20, 20, (frames, size[1], size[0], 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "30", "cpu-used": "8"}
        for image in np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path
