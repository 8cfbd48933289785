"""Moments, growing clips and curves of models that look at known places and times."""

from itertools import combinations
from math import factorial
from types import SimpleNamespace

import pytest
import tiny
import torch

from tcar.explain.curves import growing_clip, insertion_deletion
from tcar.explain.errors import ExplanationError
from tcar.explain.time import frame_importance
from tcar.fusion.kinds import FusionConfig
from tcar.models.tca import TCA

SMALL = FusionConfig(semantic_width=12, motion_width=10, num_classes=5, width=24, heads=4, dropout=0.5)


class Known(torch.nn.Module):
    """A model of frames [semantic, motion] whose logits `look` gives: [it, 0]. As TCA, it picks from whole clips."""

    pick, _pick = TCA.pick, TCA._pick

    def __init__(self, look, frames=(4, 8), streams=("semantic", "motion")):
        super().__init__()
        self.look, self.fusion = look, SimpleNamespace(streams=streams)
        self.config = SimpleNamespace(semantic_frames=frames[0], motion_frames=frames[1])
        self.largest = 0

    def forward(self, semantic, motion):
        self.largest = max(self.largest, len(semantic))
        logit = self.look(semantic, motion)
        return torch.stack([logit, torch.zeros_like(logit)], dim=1)


def levels(frames):
    """The brightness of each frame."""
    return frames.mean(dim=(2, 3, 4))


def even(*brightness):
    """A clip of flat frames, as bright as these numbers."""
    return torch.tensor(brightness)[None, :, None, None, None].expand(1, -1, 2, 2, 3).contiguous()


# --- moments -----------------------------------------------------------------------------------------------


def test_ablation_takes_the_moment_before_and_all_streams_together():
    """Semantic frames as bright as s, motion frames as m: the logit is s2 + 10 m4 + 100 m7."""
    model = Known(lambda s, m: levels(s)[:, 2] + 10 * levels(m)[:, 4] + 100 * levels(m)[:, 7])
    semantic, motion = even(0.1, 0.2, 0.8, 0.5), even(0.0, 0.1, 0.2, 0.3, 0.9, 0.5, 0.6, 0.4)
    found = frame_importance(model, (semantic, motion), 0)
    torch.testing.assert_close(found.times, torch.tensor([0.125, 0.375, 0.625, 0.875]))
    # moment 2 has motion frames 4 and 5, and takes motion frame 3; moment 3 has 6 and 7, and takes frame 5
    expected = [0, 0, (0.8 - 0.2) + 10 * (0.9 - 0.3), 100 * (0.4 - 0.5)]
    torch.testing.assert_close(found.values, torch.tensor([expected]), atol=1e-4, rtol=1e-4)
    first = Known(lambda s, m: levels(s)[:, 0] + 10 * levels(m)[:, 1])
    found = frame_importance(first, (semantic, motion), 0)
    torch.testing.assert_close(found.values, torch.tensor([[0.1 - 0.2 + 10 * (0.1 - 0.2), 0, 0, 0]]))
    lead = frame_importance(first, (semantic, motion), 1, 0)
    torch.testing.assert_close(lead.values, -found.values)


def test_each_clip_has_moments_and_a_class_of_its_own():
    model = Known(lambda s, m: levels(s)[:, 1])
    clips = torch.cat([even(0.1, 0.5, 0.2, 0.3), even(0.9, 0.2, 0.2, 0.3)])
    target = torch.tensor([0, 1])
    found = frame_importance(model, (clips, clips.repeat_interleave(2, dim=1)), target, 1 - target)
    torch.testing.assert_close(found.values, torch.tensor([[0, 0.4, 0, 0], [0, 0.7, 0, 0]]))


def test_a_stream_that_is_not_read_gives_no_moments():
    """Two frames, but the fusion reads the eight of the other stream alone."""
    seen = []

    def look(semantic, motion):
        seen.append(levels(semantic)[0].tolist())
        return levels(motion)[:, 5]

    model = Known(look, frames=(2, 8), streams=("motion",))
    motion = even(0.0, 0.1, 0.2, 0.3, 0.4, 0.9, 0.6, 0.7)
    for method in ("ablation", "shapley"):
        found = frame_importance(model, (even(0.5, 0.75), motion), 0, method=method, samples=4)
        assert found.values.shape == (1, 8)
        assert found.values[0].nonzero().flatten().tolist() == [5]
    assert all(brightness == [0.5, 0.75] for brightness in seen)


def crooked(semantic, motion):
    """A game of which every subset counts: products of three, and of the two streams."""
    s, m = levels(semantic), levels(motion)
    return 8 * s[:, 0] * s[:, 1] * m[:, 5] + (3 * s[:, 2] - m[:, 6]).relu() + (s * m[:, ::2]).sum(dim=1).exp()


def by_subsets(look, semantic, motion):
    """Shapley values of four moments over all subsets of them, written out."""

    def value(present):
        shown = [torch.tensor([m in present for m in range(4)]).repeat_interleave(r) for r in (1, 2)]
        clips = [
            torch.where(at[None, :, None, None, None], x, x.mean(dim=1, keepdim=True))
            for x, at in zip((semantic, motion), shown, strict=True)
        ]
        return look(*clips)

    values = torch.zeros(len(semantic), 4)
    for moment in range(4):
        others = [m for m in range(4) if m != moment]
        for size in range(4):
            for subset in combinations(others, size):
                weight = factorial(size) * factorial(3 - size) / factorial(4)
                values[:, moment] += weight * (value({*subset, moment}) - value(set(subset)))
    return values, value({0, 1, 2, 3}) - value(set())


def random_pair(clips=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(clips, n, 2, 2, 3, generator=generator) for n in (4, 8))


def test_shapley_values_of_four_moments_are_those_of_all_subsets():
    pair = random_pair()
    expected, whole = by_subsets(crooked, *pair)
    found = frame_importance(Known(crooked), pair, 0, method="shapley")  # 24 orders, of 25 samples
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.values.sum(dim=1), whole, atol=1e-5, rtol=1e-4)


def test_sampled_shapley_values_are_near_follow_their_seed_and_always_sum_to_the_whole():
    pair = random_pair()
    expected, whole = by_subsets(crooked, *pair)
    before = torch.random.get_rng_state()
    found = [
        frame_importance(Known(crooked), pair, 0, method="shapley", samples=n, seed=seed).values
        for n, seed in ((6, 1), (6, 1), (6, 2), (22, 1))
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    for values in found:
        torch.testing.assert_close(values.sum(dim=1), whole, atol=1e-5, rtol=1e-4)
    assert (found[3] - expected).abs().max() < 0.1 * expected.abs().max()


def test_an_order_and_its_reverse_are_exact_where_moments_meet_in_pairs():
    def look(semantic, motion):
        return (levels(semantic).sum(dim=1) + levels(motion).sum(dim=1) / 2).square()

    pair = random_pair()
    expected, _ = by_subsets(look, *pair)
    found = frame_importance(Known(look), pair, 0, method="shapley", samples=2, seed=3)
    torch.testing.assert_close(found.values, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def real():
    grids = {"semantic": (2, 2, 2), "motion": (1, 2, 2)}
    torch.manual_seed(0)
    return TCA.create(tiny.config(SMALL, tuple("abcde"), {"semantic": 2, "motion": 8}, grids)).eval()


def test_moments_of_a_real_model(real):
    model = real
    clip = torch.rand(1, 16, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    found = frame_importance(model, clip, 3, 1)
    semantic, motion = model.pick(clip)
    held = model(semantic[:, [0, 0]], motion[:, [0, 1, 2, 3, 3, 3, 3, 3]]).detach()
    later = model(semantic[:, [1, 1]], motion[:, [4, 4, 4, 4, 4, 5, 6, 7]]).detach()
    lead = [(x[:, 3] - x[:, 1]) for x in (model(clip).detach(), later, held)]
    torch.testing.assert_close(found.values, torch.stack([lead[0] - lead[1], lead[0] - lead[2]], dim=1))
    shapley = frame_importance(model, clip, 3, 1, method="shapley")
    still = model(*(x.mean(dim=1, keepdim=True).expand_as(x) for x in (semantic, motion))).detach()
    torch.testing.assert_close(shapley.values.sum(dim=1), lead[0] - (still[:, 3] - still[:, 1]), atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in model.parameters())
    model.train()
    model.fusion.train()
    again = frame_importance(model, clip, 3, 1)
    torch.testing.assert_close(again.values, found.values)  # without the dropout of training
    assert model.fusion.training


@pytest.mark.parametrize("method", ["ablation", "shapley"])
def test_progress_counts_every_evaluation(method, monkeypatch):
    counts = []

    def progress(iterable, **_):
        for number in iterable:
            counts.append(number)
            yield number

    monkeypatch.setattr("tcar.explain.time.log.progress", progress)
    model = Known(crooked)
    calls = model.register_forward_hook(lambda *_: counts.append("call"))
    frame_importance(model, random_pair(), 0, method=method, progress=True)
    calls.remove()
    evaluations = counts.count("call")
    assert [n for n in counts if n != "call"] == list(range(evaluations))
    assert evaluations == {"ablation": 1 + 4, "shapley": 1 + 4 * 24}[method]


def test_moments_that_cannot_be_are_refused():
    model, pair = Known(crooked), random_pair(1)
    with pytest.raises(ExplanationError, match="'occlusion' for moments: expected one of ablation, shapley"):
        frame_importance(model, pair, 0, method="occlusion")
    with pytest.raises(ExplanationError, match="one moment has no moments to compare: semantic has 1, motion has 8"):
        frame_importance(model, (pair[0][:, :1], pair[1]), 0)
    with pytest.raises(ExplanationError, match="samples=0"):
        frame_importance(model, pair, 0, method="shapley", samples=0)
    with pytest.raises(ExplanationError, match="same class"):
        frame_importance(model, pair, 1, 1)
    with pytest.raises(ExplanationError, match="classes are 0 to 1, got 2 to 2"):
        frame_importance(model, pair, 2)
    with pytest.raises(ExplanationError, match="at least 8 frames"):
        frame_importance(model, pair[0], 0)


# --- growing clips -----------------------------------------------------------------------------------------


def test_a_clip_that_stops_holds_its_last_frame():
    seen = []

    def look(semantic, motion):
        seen.extend(zip(levels(semantic).tolist(), levels(motion).tolist(), strict=True))
        return levels(semantic)[:, 0]

    model = Known(look, frames=(2, 4))
    video = even(*(torch.arange(8) / 8).tolist())  # the streams pick frames 2 and 6, and 1, 3, 5 and 7
    found = growing_clip(model, video, 0, steps=4, batch=3)
    assert found.times.tolist() == [0.25, 0.5, 0.75, 1]
    expected = [([1, 1], [1, 1, 1, 1]), ([2, 3], [1, 3, 3, 3]), ([2, 5], [1, 3, 5, 5]), ([2, 6], [1, 3, 5, 7])]
    assert [([round(8 * x) for x in s], [round(8 * x) for x in m]) for s, m in seen] == expected
    assert model.largest == 3
    assert len(growing_clip(model, video, 0).times) == 4  # as often as the finer stream looks
    assert growing_clip(model, video, 0, steps=3).times.tolist() == pytest.approx([2 / 8, 5 / 8, 1])


def test_the_moment_is_where_the_decision_stays():
    """The last semantic frame decides; with a lead that comes, goes and comes back."""
    bright = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])

    def certain(bright, sign=1):
        model = Known(lambda s, m: sign * 4 * (levels(s)[:, -1] - 0.5), frames=(8, 8))
        return growing_clip(model, even(*bright), 0)

    found = certain(bright.tolist())
    bytes_ = (255 * even(*bright.tolist())).to(torch.uint8)
    model = Known(lambda s, m: 4 * (levels(s)[:, -1] - 0.5), frames=(8, 8))
    torch.testing.assert_close(growing_clip(model, bytes_, 0).probabilities, found.probabilities)
    torch.testing.assert_close(found.probabilities, (4 * (bright - 0.5)).sigmoid())
    assert found.moment == 5 / 8
    assert certain(bright.tolist(), sign=-1).moment is None
    assert certain([1.0] * 8).moment == 1 / 8
    assert certain([0.5] * 8).moment is None  # one half is not above one half
    assert certain([0.0] * 7 + [1.0]).moment == 1.0


def test_temperature_and_targets_of_curves():
    model = Known(lambda s, m: 4 * levels(s)[:, -1], frames=(4, 4))
    found = growing_clip(model, even(0.0, 1.0, 1.0, 1.0), 1, temperature=2.0)
    torch.testing.assert_close(found.probabilities, torch.tensor([0.0, -2, -2, -2]).sigmoid())


def test_videos_that_cannot_grow_are_refused():
    model, video = Known(crooked), torch.rand(1, 9, 2, 2, 3)
    for given, settings, words in (
        (video.expand(2, -1, -1, -1, -1), {}, "one video"),
        (video[:, :7], {}, "at least 8 frames"),
        (video, {"steps": 0}, "1 to 9 times, got steps=0"),
        (video, {"steps": 10}, "1 to 9 times, got steps=10"),
        (video, {"batch": 0}, "above zero, got 0"),
        (video, {"temperature": 0.0}, "above zero"),
    ):
        with pytest.raises(ExplanationError, match=words):
            growing_clip(model, given, 0, **settings)
    with pytest.raises(ExplanationError, match="classes are 0 to 1"):
        growing_clip(model, video, 2)


# --- insertion and deletion --------------------------------------------------------------------------------


def corner(semantic, motion):
    """The brightness over grey of a quarter of the second semantic frame, in which nothing else counts."""
    return 8 * (semantic[:, 1, :2, :2].mean(dim=(1, 2, 3)) - 0.5)


def looked_at():
    """White clips, and a map that knows the cell, at a resolution of its own."""
    maps = {"semantic": torch.zeros(1, 2, 2, 2), "motion": torch.zeros(1, 1, 1, 1)}
    maps["semantic"][0, 1, 0, 0] = 1
    return (torch.ones(1, 2, 4, 4, 3), torch.ones(1, 4, 4, 4, 3)), maps


def test_curves_of_a_model_that_looks_at_one_cell():
    clip, maps = looked_at()
    model = Known(corner, frames=(2, 4))
    sure = torch.tensor(4.0).sigmoid()  # 4 of the 32 pixels are all that counts: the first eighth
    right = insertion_deletion(model, clip, maps, 0, steps=16)
    assert right.shares.tolist() == pytest.approx([i / 16 for i in range(17)])
    half = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(right.insertion, torch.cat([torch.tensor([0.5, half]), sure.expand(15)]))
    torch.testing.assert_close(right.deletion, torch.cat([torch.stack([sure, half]), torch.tensor(0.5).expand(15)]))
    expected = [(0.5 / 2 + half + sure * 14 + sure / 2) / 16, (sure / 2 + half + 0.5 * 14 + 0.25) / 16]
    assert [right.insertion_area, right.deletion_area] == pytest.approx([float(x) for x in expected], rel=1e-5)
    wrong = insertion_deletion(model, clip, {s: -m for s, m in maps.items()}, 0, steps=8)
    torch.testing.assert_close(wrong.insertion, torch.cat([torch.tensor(0.5).expand(8), sure[None]]))
    torch.testing.assert_close(wrong.deletion, torch.cat([sure.expand(8), torch.tensor([0.5])]))
    none = insertion_deletion(model, clip, {s: torch.ones_like(m) for s, m in maps.items()}, 0, steps=8)
    assert wrong.insertion_area < none.insertion_area < right.insertion_area
    assert wrong.deletion_area > none.deletion_area > right.deletion_area
    assert model.largest == 8


def test_both_streams_advance_in_the_same_share_each_by_its_own_ranks():
    seen = []

    def look(semantic, motion):
        seen.extend(zip(semantic.sum(dim=(1, 2, 3, 4)), motion.sum(dim=(1, 2, 3, 4)), strict=True))
        return levels(semantic)[:, 0]

    clip, _ = looked_at()
    generator = torch.Generator().manual_seed(0)
    maps = {s: 10**i * torch.rand(1, 2, 4, 4, generator=generator) for i, s in enumerate(("semantic", "motion"))}
    insertion_deletion(Known(look, frames=(2, 4)), clip, maps, 0, steps=4)
    shares = [(float(s) / 96, float(m) / 192) for s, m in seen]
    up = [(0.5 + q / 8, 0.5 + q / 8) for q in range(5)]
    assert shares == up + up[::-1]


def test_without_time_the_mean_frame_is_left():
    """Bright in the middle of the clip: grey knows of no time, the mean frame has all of its light at all times."""
    model = Known(lambda s, m: 4 * levels(s)[:, 1], frames=(3, 3))
    clip = (even(0.0, 0.9, 0.0), even(0.5, 0.5, 0.5))
    maps = {s: torch.tensor([0.0, 1.0, 0.0])[None, :, None, None] for s in ("semantic", "motion")}
    found = insertion_deletion(model, clip, maps, 0, baseline="mean_frame", steps=3)
    expected = (4 * torch.tensor([0.3, 0.9, 0.9, 0.9])).sigmoid()
    torch.testing.assert_close(found.insertion, expected)
    torch.testing.assert_close(found.deletion, (4 * torch.tensor([0.9, 0.3, 0.3, 0.3])).sigmoid())
    grey = insertion_deletion(model, clip, maps, 0, steps=3)
    torch.testing.assert_close(grey.insertion, (4 * torch.tensor([0.5, 0.9, 0.9, 0.9])).sigmoid())


def test_a_stream_that_is_not_read_needs_no_map():
    clip, maps = looked_at()
    model = Known(corner, frames=(2, 4), streams=("semantic",))
    found = insertion_deletion(model, clip, {"semantic": maps["semantic"]}, 0, steps=8)
    assert found.insertion.tolist() == pytest.approx([0.5] + [float(torch.tensor(4.0).sigmoid())] * 8)


def test_curves_of_a_real_model_begin_and_end_where_they_must(real):
    video = torch.rand(1, 9, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    whole = (real(video).detach() / 2).softmax(dim=1)[0, 3]
    grown = growing_clip(real, video, 3, steps=2, temperature=2.0)
    half = video[:, [0, 1, 2, 3, 3, 3, 3, 3, 3]]
    torch.testing.assert_close(grown.probabilities[0], (real(half).detach() / 2).softmax(dim=1)[0, 3])
    torch.testing.assert_close(grown.probabilities[1], whole)
    maps = {"semantic": torch.rand(1, 2, 2, 2), "motion": torch.rand(1, 1, 2, 2)}
    found = insertion_deletion(real, video, maps, 3, steps=2, temperature=2.0, batch=4)
    grey = (real(torch.full_like(video, 0.5)).detach() / 2).softmax(dim=1)[0, 3]
    torch.testing.assert_close(found.insertion[[0, -1]], torch.stack([grey, whole]))
    torch.testing.assert_close(found.deletion[[0, -1]], torch.stack([whole, grey]))


def test_curves_that_cannot_be_are_refused():
    clip, maps = looked_at()
    model = Known(corner, frames=(2, 4))
    for given, settings, words in (
        (maps, {"baseline": "black"}, "baseline 'black': expected one of grey, mean_frame"),
        (maps, {"steps": 0}, "at least one step"),
        (maps, {"temperature": -1.0}, "above zero"),
        ({}, {}, r"maps of semantic, motion expected, as the fusion reads them; got \[\]"),
        ({"semantic": maps["semantic"]}, {}, r"got \['semantic'\]"),
        (maps | {"sound": maps["motion"]}, {}, "sound"),
        (maps | {"motion": torch.zeros(1, 0, 2, 2)}, {}, "motion map must be .* not empty"),
        (maps | {"motion": torch.zeros(2, 1, 2, 2)}, {}, "motion map must be"),
        (maps | {"motion": torch.full((1, 1, 2, 2), torch.nan)}, {}, "motion map has values that are not finite"),
    ):
        with pytest.raises(ExplanationError, match=words):
            insertion_deletion(model, clip, given, 0, **settings)
    with pytest.raises(ExplanationError, match="curves are of one clip, got 2"):
        insertion_deletion(model, tuple(x.expand(2, -1, -1, -1, -1) for x in clip), maps, 0)
