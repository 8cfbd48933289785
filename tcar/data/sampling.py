"""Which frames of a clip are looked at: pure functions of its length, a number of frames and a seeded generator.

Every function returns numbers of frames, 0-based and in the order of time, of a clip of `frame_count` frames.
"""

from collections.abc import Sequence

import numpy as np


def segment_indices(frame_count: int, segments: int) -> list[int]:
    """The middle frame of each of `segments` equal parts; a video shorter than that repeats frames.

    The uniform sampling of TSN (Wang et al., 2016), as VideoMAE and CAST use it in testing. Raises ValueError
    for less than one frame or part, as every sampler here does.
    """
    _check(frame_count, segments)
    return [(2 * part + 1) * frame_count // (2 * segments) for part in range(segments)]


def segment_starts(frame_count: int, segments: int) -> list[int]:
    """The first frame of each of `segments` equal parts, the second clip of VideoMAE's testing."""
    _check(frame_count, segments)
    return [part * frame_count // segments for part in range(segments)]


def random_segment_indices(frame_count: int, segments: int, generator: np.random.Generator) -> list[int]:
    """One frame of each of `segments` equal parts, each of its frames as likely: TSN's sampling in training.

    The parts share the video without overlap; a video shorter than that repeats frames.
    """
    starts = [*segment_starts(frame_count, segments), frame_count]
    return [
        int(generator.integers(start, max(start + 1, end)))
        for start, end in zip(starts[:-1], starts[1:], strict=True)
    ]


def strided_indices(
    frame_count: int, frames: int, stride: int, generator: np.random.Generator | None = None
) -> list[int]:
    """`frames` frames, each `stride` after the one before, from a random start, or centred without a generator.

    Where the video is too short for that, it begins at its first frame and repeats its last one, as V-JEPA 2
    (Assran et al., 2025) does: of 45 frames, 16 at a stride of 4 are only 12 different ones. Prefer segments
    for short clips.
    """
    _check(frame_count, frames)
    if stride < 1:
        raise ValueError(f"stride must be 1 frame or more, got {stride}")
    spare = max(0, frame_count - 1 - (frames - 1) * stride)
    start = spare // 2 if generator is None else int(generator.integers(spare + 1))
    return [min(start + step * stride, frame_count - 1) for step in range(frames)]


def test_clips(frame_count: int, frames: int) -> list[list[int]]:
    """The two clips of VideoMAE's testing (Tong et al., 2022): the starts and the middles of `frames` segments.

    Laid together they alternate, so that both see the whole action at half a segment's distance. Their scores
    are averaged, together with those of the three crops of each (`tcar.data.augment.three_crops`).
    """
    return [segment_starts(frame_count, frames), segment_indices(frame_count, frames)]


test_clips.__test__ = False  # the name says what it is for; pytest would collect it


def jitter(
    indices: Sequence[int], frame_count: int, generator: np.random.Generator, reach: int = 1
) -> list[int]:
    """Each frame moved by up to `reach` frames either way, within the video and still in the order of time."""
    _check(frame_count, len(indices))
    if reach < 0:
        raise ValueError(f"reach must be 0 frames or more, got {reach}")
    moved = np.asarray(indices) + generator.integers(-reach, reach + 1, len(indices))
    return np.sort(np.clip(moved, 0, frame_count - 1)).tolist()


def drop_frames(indices: Sequence[int], share: float, generator: np.random.Generator) -> list[int]:
    """As many frames as before, but each one except the first lost with the probability `share`.

    A lost frame is replaced by the one shown before it, as a player that cannot keep up would do.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    if not indices:
        return []
    lost = generator.random(len(indices)) < share
    kept, shown = [], indices[0]
    for index, gone in zip(indices, lost, strict=True):
        if not gone:
            shown = index
        kept.append(int(shown))
    return kept


def _check(frame_count: int, frames: int) -> None:
    if frame_count < 1 or frames < 1:
        raise ValueError(f"segments need at least one frame and one part, got {frame_count} and {frames}")
