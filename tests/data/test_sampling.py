import numpy as np
import pytest

from tcar.data.sampling import random_segment_indices, segment_indices, segment_starts


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("segments", [1, 8, 16])
@pytest.mark.parametrize("frames", [1, 5, 8, 31, 200])
def test_segments_are_represented_by_their_middles(frames, segments):
    indices = segment_indices(frames, segments)
    for part, index in enumerate(indices):
        start, end = part * frames / segments, (part + 1) * frames / segments
        assert start - 1 < index <= end
        assert index == int((start + end) / 2)
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < frames


@pytest.mark.parametrize("segments", [1, 8, 16])
@pytest.mark.parametrize("frames", [1, 5, 8, 31, 200])
def test_random_segments_reach_every_frame_and_share_none(frames, segments):
    draws = np.array([random_segment_indices(frames, segments, generator(seed)) for seed in range(400)])
    assert (np.diff(draws, axis=1) >= 0).all()
    parts = [set(column) for column in draws.T.tolist()]
    if 1 <= frames / segments <= 32:  # so that the draws do reach all
        assert sum(map(len, parts)) == frames  # no frame in two parts, and none in none
    assert set.union(*parts) <= set(range(frames))
    for part, found in enumerate(parts):
        assert min(found) >= segment_starts(frames, segments)[part]


def test_random_segments_prefer_no_frame():
    draws = np.array([random_segment_indices(32, 4, generator(seed)) for seed in range(4000)])
    counts = np.bincount(draws.ravel(), minlength=32)
    assert abs(counts - 500).max() < 5 * np.sqrt(500)


def test_the_two_clips_of_testing_alternate():
    """By the rule of VideoMAE: both lists in one, sorted, dealt out in turns."""
    for frames, count in ((48, 8), (31, 16), (7, 8), (1, 4)):
        tick = frames / count
        middles = [int(tick / 2 + tick * part) for part in range(count)]
        everything = sorted([int(tick * part) for part in range(count)] + middles)
        assert [segment_starts(frames, count), segment_indices(frames, count)] == [everything[0::2], everything[1::2]]


def test_the_seed_decides():
    draws = [tuple(random_segment_indices(100, 8, generator(seed))) for seed in (*range(10), 1)]
    assert draws[1] == draws[-1] and len(set(draws)) > 1


def test_what_cannot_be_sampled():
    with pytest.raises(ValueError, match="at least one frame"):
        segment_indices(0, 8)
    with pytest.raises(ValueError, match="at least one frame"):
        random_segment_indices(8, 0, generator())
