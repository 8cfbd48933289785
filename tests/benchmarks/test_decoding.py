"""How fast frames come out of videos, against decord called directly on the same files in the same run."""

import time

import av  # noqa: F401  before decord: the other way round the VP9 encoder fails
import decord
import numpy as np
import pytest
from videos import write_video

from tcar.data.sampling import segment_indices
from tcar.data.video import probe, read_frames

# Small as Tabletop, and as Something-Something-V2 is: name, frames, width, height, frames asked for
CLIPS = [("tabletop", 40, 160, 120, 8), ("tabletop", 40, 160, 120, 16), ("ssv2", 48, 424, 240, 8)]


def side_by_side(*functions, repeats: int = 25) -> list[float]:
    """The shortest processor time of each function, in seconds; they take turns, so that both meet the same noise."""
    times = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
    return [min(taken) for taken in times]


@pytest.mark.parametrize(("name", "frames", "width", "height", "wanted"), CLIPS)
def test_reading_against_decord(tmp_path, capsys, unchecked, name, frames, width, height, wanted):
    path = write_video(tmp_path / "clip.webm", frames, width=width, height=height)
    indices = segment_indices(frames, wanted)

    def direct() -> np.ndarray:
        return decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()

    np.testing.assert_array_equal(read_frames(path, indices), direct())
    ours, theirs, checks = side_by_side(lambda: read_frames(path, indices), direct, lambda: probe(path))
    with capsys.disabled():
        print(f"\n{name}, {wanted} of {frames} frames of {width}x{height}: read_frames gives {theirs / ours:.2f} times "
              f"the frames per second of decord called directly ({1000 * ours:.1f} ms a clip, of which checking "
              f"the container {1000 * checks:.1f} ms)")
