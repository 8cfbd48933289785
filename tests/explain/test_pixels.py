"""Attribution to pixels, tokens and tubes: linear models in closed form, curved ones, Captum itself, a whole TCA."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from captum.attr import FeatureAblation, IntegratedGradients, NoiseTunnel, Saliency
from torch import nn

from tcar.explain.errors import ExplanationError
from tcar.explain.pixels import METHODS, attribute
from tcar.fusion.kinds import FusionConfig
from tcar.models.tca import TCA
from tcar.streams.grids import pool_tokens
from tcar.streams.registry import create_stream

SMALL = FusionConfig(semantic_width=12, motion_width=10, num_classes=5, width=24, heads=4, dropout=0.5)
GRIDS = {"semantic": (2, 2, 2), "motion": (1, 2, 2)}
SHAPES = {"semantic": (2, 6, 7, 3), "motion": (3, 5, 4, 3)}
OF_PIXELS = [m for m in METHODS if m not in ("grad_cam", "tubes")]


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pair(clips=2, seed=0):
    return tuple(drawn(clips, *shape, seed=seed + n) for n, shape in enumerate(SHAPES.values()))


class Linear(nn.Module):
    """Three classes, each a weighted sum of the pixels of both streams."""

    def __init__(self):
        super().__init__()
        self.weights = [drawn(3, *shape, seed=9) - 0.5 for shape in SHAPES.values()]

    def forward(self, semantic, motion):
        return sum(torch.einsum("bthwc,kthwc->bk", x, w) for x, w in zip((semantic, motion), self.weights, strict=True))


class Curved(nn.Module):
    """One class alone, a function of the mean of all pixels; counts the clips that it sees."""

    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, 0

    def forward(self, semantic, motion):
        self.seen += len(semantic)
        level = (semantic.flatten(1).mean(dim=1) + motion.flatten(1).mean(dim=1)) / 2
        return self.function(level)[:, None]


@functools.cache
def tca(kind="cross_attention"):
    torch.manual_seed(0)
    frames = {"semantic": 2, "motion": 8}
    return TCA.create(tiny.config(replace(SMALL, kind=kind), tuple("abcde"), frames, GRIDS)).eval()


@functools.cache
def clip():
    return drawn(1, 2, 24, 32, 3), drawn(1, 8, 24, 32, 3, seed=1)


# --- linear and curved models ------------------------------------------------------------------------------

BASELINES = {
    "grey": lambda x: torch.full_like(x, 0.5),
    "black": torch.zeros_like,
    "mean_frame": lambda x: x.mean(dim=1, keepdim=True).expand_as(x),
}


@pytest.mark.parametrize("name", BASELINES)
def test_integrated_gradients_of_a_linear_model_are_its_weights_times_the_change(name):
    model, frames, target, against = Linear(), pair(), torch.tensor([1, 0]), torch.tensor([2, 2])
    found = attribute(model, frames, target, against, method="integrated_gradients", baseline=name, batch=4)
    for s, x, weight in zip(SHAPES, frames, model.weights, strict=True):
        expected = (weight[target] - weight[against]) * (x - BASELINES[name](x))
        torch.testing.assert_close(found.values[s], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.maps[s], expected.sum(dim=-1), atol=1e-5, rtol=1e-4)
    assert (found.maps["semantic"] < 0).any()
    assert (found.method, found.steps, found.converged.tolist()) == ("integrated_gradients", 16, [True, True])


def test_a_baseline_is_a_tensor_that_broadcasts_or_one_for_each_stream():
    model, frames = Linear(), pair()
    colour, levels = torch.tensor([0.1, 0.2, 0.3]), (drawn(*SHAPES["semantic"], seed=5), torch.tensor(0.25))
    for baseline, by_stream in ((colour, (colour, colour)), (levels, levels)):
        found = attribute(model, frames, 1, method="integrated_gradients", baseline=baseline, steps=1)
        for s, x, weight, level in zip(SHAPES, frames, model.weights, by_stream, strict=True):
            torch.testing.assert_close(found.values[s], weight[1] * (x - level), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["gradient", "smooth_grad"])
def test_the_gradient_of_a_linear_model_is_its_weights_whatever_the_noise(method):
    model, frames = Linear(), pair()
    found = attribute(model, frames, torch.tensor([0, 2]), 1, method=method, steps=3, batch=2)
    for s, weight in zip(SHAPES, model.weights, strict=True):
        torch.testing.assert_close(found.values[s], weight[[0, 2]] - weight[1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.maps[s], found.values[s].sum(dim=-1))
    assert found.error is None
    assert found.converged is None
    assert found.steps == (3 if method == "smooth_grad" else None)


def test_gradient_shap_of_a_linear_model_is_that_of_the_baseline_but_for_the_mean_of_the_noise():
    model, frames = Linear(), pair()
    found, again, other = (
        attribute(model, frames, 1, method="gradient_shap", steps=100, batch=7, seed=seed) for seed in (0, 0, 1)
    )
    for s, x, weight in zip(SHAPES, frames, model.weights, strict=True):
        noise = 0.1 / math.sqrt(100) * weight[1].abs()  # the standard deviation of its mean
        off = (found.values[s] - weight[1] * (x - 0.5)).abs()
        assert (off <= 5 * noise + 1e-6).all()
        assert (off > 0.1 * noise).float().mean() > 0.5
        assert torch.equal(found.values[s], again.values[s])
        assert not torch.equal(found.values[s], other.values[s])
    assert found.steps == 100
    assert found.error.max() < 1e-4  # every draw of a linear model is complete


@pytest.mark.parametrize("batch", [1, 7])
def test_a_tube_of_a_linear_model_is_worth_the_sum_of_its_pixels(batch):
    model, frames = Linear(), pair()
    found = attribute(model, frames, 0, 2, method="tubes", baseline="black", batch=batch)
    for s, x, weight in zip(SHAPES, frames, model.weights, strict=True):
        cells = [min(most, size) for most, size in zip((4, 5, 5), x.shape[1:4], strict=True)]
        expected = torch.zeros(2, *cells)
        for place in np.ndindex(*x.shape[1:4]):
            cell = tuple(int((p + 0.5) * n / size) for p, n, size in zip(place, cells, x.shape[1:4], strict=True))
            expected[:, *cell] += ((weight[0] - weight[2])[place] * x[:, *place]).sum(dim=-1)
        torch.testing.assert_close(found.maps[s], expected, atol=1e-5, rtol=1e-4)
    assert found.values == {}
    assert found.error is found.steps is found.converged is None


def test_steps_double_until_the_values_are_complete_clip_by_clip():
    """The first clip lies at its baseline's side of the bend, so that 16 steps are enough."""
    frames = tuple(torch.cat([0.1 * x, x]) for x in pair(1))
    model = Curved(lambda level: level + torch.sigmoid(300 * (level - 0.3)))
    found = attribute(model, frames, 0, method="integrated_gradients", baseline="black", batch=8)
    assert found.converged.all()
    assert found.error.max() < 0.01
    assert found.steps in (32, 64, 128, 256)
    more = sum(steps for steps in (32, 64, 128, 256) if steps <= found.steps)
    assert model.seen == 1 + 2 * (2 + 16) + more  # how many classes; both ends; sixteen steps; of one clip more
    total = sum(x.sum(dim=(1, 2, 3)) for x in found.maps.values())
    rise = (model(*frames) - model(*map(torch.zeros_like, frames)))[:, 0]
    torch.testing.assert_close(total, rise, rtol=0.01, atol=0)


@pytest.mark.parametrize(("steps", "taken"), [("auto", 256), (5, 5)])
def test_what_did_not_converge_says_so(steps, taken):
    model = Curved(lambda level: torch.sigmoid(1e5 * (level - 0.3)))  # a step that no point comes near
    found = attribute(model, pair(1), 0, method="integrated_gradients", baseline="black", steps=steps, batch=64)
    assert found.steps == taken
    assert not found.converged.any()
    assert found.error > 0.01


def test_a_clip_is_explained_alike_alone_and_in_a_batch():
    frames, targets = pair(2), torch.tensor([2, 0])
    model = Linear()
    for method in OF_PIXELS:
        both = attribute(model, frames, targets, method=method, steps=4)
        for n in range(2):
            alone = attribute(model, tuple(x[n : n + 1] for x in frames), int(targets[n]), method=method, steps=4)
            for s in SHAPES:
                torch.testing.assert_close(both.values[s][n], alone.values[s][0])


# --- captum itself -----------------------------------------------------------------------------------------


def test_smooth_grad_and_tubes_are_what_captum_makes_of_the_frames():
    model, frames = Curved(lambda level: (4 * level).exp()), pair(1)
    found = attribute(model, frames, 0, method="smooth_grad", steps=6, batch=3, seed=4)
    torch.manual_seed(4)
    expected = NoiseTunnel(Saliency(model)).attribute(
        frames, target=0, nt_samples=6, nt_samples_batch_size=3, stdevs=0.1, abs=False
    )
    for s, values in zip(SHAPES, expected, strict=True):
        torch.testing.assert_close(found.values[s], values)
    found = attribute(model, frames, 0, method="tubes", batch=9)
    masks, first = [], 0
    for x in frames:
        cells = [min(most, size) for most, size in zip((4, 5, 5), x.shape[1:4], strict=True)]
        index = torch.arange(math.prod(cells)).view(1, 1, *cells).float()
        spread = nn.functional.interpolate(index, x.shape[1:4], mode="nearest-exact").long()
        masks.append(first + spread[0, ..., None].expand_as(x))
        first += math.prod(cells)
    both = FeatureAblation(model).attribute(frames, (0.5, 0.5), target=0, feature_mask=tuple(masks))
    for s, mask, values in zip(SHAPES, masks, both, strict=True):
        for cell, value in enumerate(found.maps[s].flatten().tolist(), start=int(mask.min())):
            assert values[mask == cell].unique().tolist() == pytest.approx([value], rel=1e-3)


def test_integrated_gradients_of_a_tca_are_those_of_captum_over_both_streams():
    model, frames = tca(), clip()
    found = attribute(model, frames, 3, 1, method="integrated_gradients", steps=2, batch=2)
    with model.explaining():
        expected = IntegratedGradients(lambda *x: model(*x)[:, 3] - model(*x)[:, 1]).attribute(
            frames, (0.5, 0.5), n_steps=2
        )
        with torch.no_grad():
            ends = [model(*x)[0] for x in (frames, tuple(torch.full_like(x, 0.5) for x in frames))]
    for s, values in zip(SHAPES, expected, strict=True):
        torch.testing.assert_close(found.values[s], values.float(), rtol=1e-3, atol=1e-6)
        assert (found.values[s].abs().sum(dim=(2, 3, 4)) > 0).all()  # every frame of both streams
    rise = float((ends[0] - ends[1])[3] - (ends[0] - ends[1])[1])
    total = sum(float(x.sum()) for x in expected)
    assert float(found.error) == pytest.approx(abs(total - rise) / abs(rise), rel=0.02)
    assert bool(found.converged) == (float(found.error) < 0.01)


# --- a whole TCA -------------------------------------------------------------------------------------------


def test_grad_cam_weighs_the_channels_of_each_stream_by_their_mean_gradient():
    model, frames = tca(), clip()
    found = attribute(model, frames, 3, method="grad_cam")
    tokens = [getattr(model, s)(x) for s, x in zip(SHAPES, frames, strict=True)]
    given = []
    for s, made in zip(SHAPES, tokens, strict=True):
        made.values.requires_grad_()
        pooled = pool_tokens(made, GRIDS[s])
        given += [pooled.values.flatten(1, 2), pooled.coordinates.flatten(0, 1)]
    gradients = torch.autograd.grad(model.fusion(*given)[0, 3], [made.values for made in tokens])
    for s, made, gradient in zip(SHAPES, tokens, gradients, strict=True):
        expected = (made.values * gradient.mean(dim=(1, 2), keepdim=True)).sum(dim=-1).view(1, *made.grid)
        torch.testing.assert_close(found.maps[s], expected.detach(), rtol=1e-3, atol=1e-6)
        assert (found.maps[s] < 0).any()
    assert found.values == {}


def test_grad_cam_of_a_stream_that_sees_the_central_square_is_nothing_beside_it():
    streams = {"semantic": create_stream("dinov2_tiny", fit="crop"), "motion": create_stream("i3d_tiny")}
    model = TCA(tca().config, **streams).eval()
    found = attribute(model, clip(), 3, method="grad_cam").maps
    grid = model.semantic(clip()[0]).grid
    assert found["semantic"].shape == (1, grid[0], 24, 32)
    assert not found["semantic"][..., :4].any()
    assert not found["semantic"][..., 28:].any()
    assert len(found["semantic"][0, 0, :, 4:28].unique()) == grid[1] * grid[2]
    assert found["motion"].shape == (1, *model.motion(clip()[1]).grid)


def test_only_the_streams_that_the_fusion_reads_have_maps():
    model = tca("semantic")
    video = drawn(1, 8, 24, 32, 3)
    for method in METHODS:
        found = attribute(model, video, 0, method=method, steps=1, batch=50)
        assert list(found.maps) == ["semantic"], method
        assert found.maps["semantic"].any(), method


def test_nothing_is_left_behind():
    model, frames = tca().train(), tuple(x.clone() for x in clip())
    modes = [module.training for module in model.modules()]
    assert any(modes)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    try:
        first = attribute(model, frames, 3, method="gradient_shap", steps=1, seed=2)
        assert [module.training for module in model.modules()] == modes
    finally:
        model.eval()
    again = attribute(model, frames, 3, method="gradient_shap", steps=1, seed=2)
    for s in SHAPES:
        torch.testing.assert_close(first.values[s], again.values[s])  # there is no dropout in an explanation
        assert not again.values[s].requires_grad
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert all(p.grad is None for p in model.parameters())
    for x, kept in zip(frames, clip(), strict=True):
        assert torch.equal(x, kept)
        assert not x.requires_grad
        assert x.grad is None
    with pytest.raises(ValueError, match="0 to 1.2"):
        model(frames[0], 1.2 * frames[1].round())  # it is explained no more


def test_frames_of_inference_and_a_caller_without_gradients_are_explained_too():
    model = Linear()
    with torch.inference_mode():
        found = attribute(model, tuple(x.clone() for x in pair()), 0, method="gradient")
    torch.testing.assert_close(found.values["motion"][1], model.weights[1][0])


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("gradient", "grad_cam")])
def test_progress_counts_evaluations_and_changes_nothing(capsys, method):
    found = [attribute(Linear(), pair(), 1, method=method, steps=3, batch=2, progress=on) for on in (False, True)]
    for s in SHAPES:
        assert torch.equal(found[0].maps[s], found[1].maps[s])
    lines = [line for line in capsys.readouterr().err.splitlines() if f"{method}, clip 2 of 2" in line]
    counts = {"integrated_gradients": 2, "gradient_shap": 6, "smooth_grad": 2, "tubes": 26}
    assert f": {counts[method]} evaluations in " in lines[0]


# --- what cannot be explained ------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "saliency"}, "unknown method 'saliency'; there are integrated_gradients, .*, tubes"),
    ({"method": "grad_cam"}, "grad_cam explains the tokens of a TCA, and a Linear is not one"),
    ({"baseline": "white"}, "unknown baseline 'white'; there are grey, black, mean_frame, or give a tensor"),
    ({"baseline": torch.zeros(2, 3)}, r"baseline of semantic, \[2, 3\], does not broadcast .* \[2, 2, 6, 7, 3\]"),
    ({"baseline": torch.tensor(3.0)}, r"the baseline of semantic: must lie in \[0, 1\], got 3 to 3"),
    ({"baseline": torch.tensor(128, dtype=torch.uint8)}, "the baseline of semantic is torch.uint8; divide by 255"),
    ({"baseline": tuple(map(torch.clone, pair()))}, "clip 1 is its own baseline"),
    ({"target": 3}, "target 3 is no class: the model has 3, numbered from 0"),
    ({"target": -1}, "target -1 is no class"),
    ({"against": torch.tensor([0, 7])}, "against 7 is no class"),
    ({"target": torch.tensor([0, 1, 2])}, "target: one class for all clips or 2 expected"),
    ({"against": 1}, "class 1 is held against itself"),
    ({"against": torch.tensor([0, 1])}, "class 1 is held against itself"),
    ({"steps": 0}, "steps is 0, but must be 'auto' or a whole number of at least 1"),
    ({"batch": 0}, "batch is 0, but must be a whole number of at least 1"),
    ({"frames": tuple((255 * x).byte() for x in pair())}, "gradient of torch.uint8; divide by 255"),
    ({"frames": tuple(255 * x for x in pair())}, r"semantic frames: must lie in \[0, 1\], got .*; divide 0-255"),
    ({"frames": tuple(math.nan * x for x in pair())}, r"must lie in \[0, 1\], got nan"),
    ({"frames": pair()[0]}, "a Linear picks no frames: give those of both streams"),
    ({"frames": pair()[:1]}, "frames of semantic and motion expected, or one tensor; got 1"),
    ({"frames": (pair(1)[0], pair(2)[1])}, r"different numbers of clips: \[1, 2\]"),
    ({"frames": (pair()[0][0], pair()[1])}, r"\[batch, time, height, width, 3\] expected, got \[2, 6, 7, 3\]"),
])  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(unchecked, changes, message):
    asked = {"frames": pair(), "target": 1, "method": "integrated_gradients"} | changes
    with pytest.raises(ExplanationError, match=message):
        attribute(Linear(), **asked)


def test_one_frame_is_its_own_mean():
    frames = pair()[0][:, :1], pair()[1]
    with pytest.raises(ExplanationError, match="mean_frame needs several frames, and semantic has one"):
        attribute(Linear(), frames, 1, method="integrated_gradients", baseline="mean_frame")
    still = tuple(x[:, :1].expand_as(x) for x in pair())
    model = Linear()
    with pytest.raises(ExplanationError, match="clip 1 is its own baseline"):
        attribute(model, still, 1, method="tubes", baseline=still)
    assert attribute(model, still, 1, method="gradient", baseline="mean_frame").maps


def test_a_tca_says_what_is_too_short_for_it():
    with pytest.raises(ExplanationError, match="the motion stream needs clips .* at least 8 frames"):
        attribute(tca(), drawn(1, 5, 24, 32, 3), 1, method="gradient")
    for method in ("gradient", "grad_cam", "tubes"):
        with pytest.raises(ExplanationError, match=r"cannot pool a token grid \(1, "):
            attribute(tca(), (clip()[0][:, :1], clip()[1]), 1, method=method)
    with pytest.raises(ExplanationError, match="target 5 is no class: the model has 5"):
        attribute(tca(), clip(), 5, method="gradient")
