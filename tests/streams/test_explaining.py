"""A frozen stream that is explained: gradients in its layers, noise beyond [0, 1], and neither of them afterwards."""

import functools

import pytest
import tiny
import torch
from captum.attr import LayerGradCam

from tcar.fusion.kinds import FusionConfig
from tcar.models.tca import TCA
from tcar.streams.registry import create_stream
from tcar.streams.stream import NOISE

NAMES = ("dinov2_tiny", "i3d_tiny")
OUT_OF_RANGE = r"float frames must lie in \[0, 1\], got "


@functools.cache
def stream(name):
    return create_stream(name)


def frames():
    return torch.rand(1, 4, 24, 32, 3, generator=torch.Generator().manual_seed(0))


def last_layer(name):
    backbone = stream(name).backbone
    return backbone.layernorm if name == "dinov2_tiny" else backbone.blocks[4]


def summed(name):
    return lambda x: stream(name)(x).values.square().sum(dim=(1, 2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_has_a_gradient_under_it_and_none_without(name):
    """The frames ask for none, as Captum's layer methods leave them."""
    method = LayerGradCam(summed(name), last_layer(name))
    with pytest.raises(RuntimeError, match="does not require grad"):
        method.attribute(frames())
    with stream(name).explaining():
        found = method.attribute(frames())
    assert torch.isfinite(found).all()
    assert (found != 0).any()
    assert all(p.grad is None and not p.requires_grad for p in stream(name).parameters())
    assert not stream(name)(frames()).values.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_and_the_gradient_of_frames_are_those_of_before(name):
    found = {}
    for explained in (False, True):
        x = frames().requires_grad_()
        if explained:
            with stream(name).explaining():
                found[explained] = stream(name)(x).values
        else:
            found[explained] = stream(name)(x).values
        found[explained] = found[explained].detach(), torch.autograd.grad(found[explained].square().sum(), x)[0]
    for plain, under in zip(*found.values(), strict=True):
        torch.testing.assert_close(plain, under)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_noise_passes_while_it_is_explained_and_only_so_far(name, gradient):
    for least, most in ((-NOISE, 1 + NOISE), (-0.2, 1.0)):
        noisy = torch.empty(1, 4, 24, 32, 3).uniform_(least, most, generator=torch.Generator().manual_seed(0))
        noisy = noisy.requires_grad_(gradient)
        with stream(name).explaining():
            assert torch.isfinite(stream(name)(noisy).values).all()
        with pytest.raises(ValueError, match=OUT_OF_RANGE + ".*with model.explaining"):
            stream(name)(noisy)
    for far in (torch.full((1, 4, 24, 32, 3), 1.1 + NOISE), -0.1 - NOISE - frames(), torch.nan * frames()):
        with stream(name).explaining(), pytest.raises(ValueError, match=OUT_OF_RANGE):
            stream(name)(far.requires_grad_(gradient))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_have_no_gradient(name):
    clip = (255 * frames()).byte()
    for gradients in (torch.no_grad, torch.enable_grad):
        with gradients(), stream(name).explaining(), pytest.raises(ValueError, match="divide bytes by 255; got"):
            stream(name)(clip)
    assert torch.isfinite(stream(name)(clip).values).all()


def test_nothing_is_recorded_where_the_caller_wants_no_gradient():
    with torch.no_grad(), stream("i3d_tiny").explaining():
        assert not stream("i3d_tiny")(frames()).values.requires_grad


def test_nothing_of_it_is_left_after_an_exception_or_an_explanation_inside_another():
    fusion = FusionConfig(num_classes=2, width=16, heads=2, blocks=1)
    grids = {"semantic": (2, 2, 2), "motion": (1, 2, 2)}
    model = TCA.create(tiny.config(fusion, ("a", "b"), {"semantic": 2, "motion": 8}, grids)).eval()
    clip = torch.rand(1, 8, 24, 32, 3)

    def explained() -> set[bool]:
        """Whether each stream records gradients."""
        with torch.enable_grad():
            return {model.tokens(role, clip)[0].requires_grad for role in ("semantic", "motion")}

    assert explained() == {False}
    with pytest.raises(ValueError, match="divide bytes"), model.explaining():
        model((255 * clip).byte())
    assert explained() == {False}
    with model.explaining():
        with model.semantic.explaining():
            pass
        assert explained() == {True}
    assert explained() == {False}
    with pytest.raises(ValueError, match=OUT_OF_RANGE):
        model(clip + 0.3)
