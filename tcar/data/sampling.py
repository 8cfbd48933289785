"""Which frames of a clip are read: functions of its length, a number of frames and a seeded generator; and seeds.

Samplers return numbers of frames, 0-based and in the order of time, of a clip of `frame_count` frames.
"""

import hashlib

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


def _check(frame_count: int, frames: int) -> None:
    if frame_count < 1 or frames < 1:
        raise ValueError(f"segments need at least one frame and one part, got {frame_count} and {frames}")


def view_seed(seed: int, *names: str | int) -> int:
    """Return the seed of one view, 63 bits of the SHA-256 of all that names it (clip, epoch, number of the view)."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
