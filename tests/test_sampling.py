import numpy as np
import pytest

from tcar.data.sampling import (
    drop_frames,
    jitter,
    random_segment_indices,
    segment_indices,
    segment_starts,
    strided_indices,
    test_clips,
)


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


@pytest.mark.parametrize(("frames", "count"), [(48, 8), (31, 16), (7, 8), (1, 4)])
def test_the_two_clips_of_testing_alternate(frames, count):
    """By the rule of VideoMAE: both lists in one, sorted, dealt out in turns."""
    tick = frames / count
    middles = [int(tick / 2 + tick * part) for part in range(count)]
    everything = sorted([int(tick * part) for part in range(count)] + middles)
    assert test_clips(frames, count) == [everything[0::2], everything[1::2]]


@pytest.mark.parametrize(("frames", "count", "stride"), [(48, 8, 4), (45, 16, 4), (29, 8, 4), (3, 8, 1)])
def test_strided_clips(frames, count, stride):
    for source in (None, generator(3)):
        indices = strided_indices(frames, count, stride, source)
        assert len(indices) == count
        fits = indices[-1] < frames - 1 or (count - 1) * stride == indices[-1] - indices[0]
        assert set(np.diff(indices)) == {stride} if fits else indices[0] == 0 and indices[-1] == frames - 1
    starts = {strided_indices(frames, count, stride, generator(seed))[0] for seed in range(300)}
    assert starts == set(range(max(1, frames - (count - 1) * stride)))


def test_a_centred_clip_leaves_as_much_on_both_sides():
    indices = strided_indices(48, 8, 4)
    assert abs(indices[0] - (47 - indices[-1])) <= 1


def test_jitter_stays_near_and_in_order():
    indices = segment_indices(40, 8)
    moved = np.array([jitter(indices, 40, generator(seed), 2) for seed in range(300)])
    assert abs(moved - indices).max() == 2
    assert (np.diff(moved, axis=1) >= 0).all()
    assert moved.min() >= 0 and moved.max() < 40
    assert jitter(indices, 40, generator(), 0) == indices
    crowded = np.array([jitter([0, 0, 1], 2, generator(seed), 3) for seed in range(50)])
    assert set(crowded.ravel()) == {0, 1}


def test_dropped_frames_are_held():
    indices = list(range(10, 60, 5))
    assert drop_frames(indices, 0.0, generator()) == indices
    assert drop_frames(indices, 1.0, generator()) == [10] * 10
    assert drop_frames([], 0.5, generator()) == []
    kept = np.array([drop_frames(indices, 0.3, generator(seed)) for seed in range(2000)])
    assert (kept <= indices).all() and (np.diff(kept, axis=1) >= 0).all()
    assert (kept != indices)[:, 1:].mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    "sample",
    [
        lambda seed: random_segment_indices(100, 8, generator(seed)),
        lambda seed: strided_indices(100, 8, 3, generator(seed)),
        lambda seed: jitter(range(0, 80, 10), 100, generator(seed), 5),
        lambda seed: drop_frames(range(20), 0.5, generator(seed)),
    ],
)
def test_the_seed_decides(sample):
    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(10)}) > 1


def test_what_cannot_be_sampled():
    with pytest.raises(ValueError, match="at least one frame"):
        segment_indices(0, 8)
    with pytest.raises(ValueError, match="at least one frame"):
        random_segment_indices(8, 0, generator())
    with pytest.raises(ValueError, match="stride"):
        strided_indices(8, 4, 0)
    with pytest.raises(ValueError, match="reach"):
        jitter([1], 8, generator(), -1)
    with pytest.raises(ValueError, match="share"):
        drop_frames([1], 1.5, generator())
