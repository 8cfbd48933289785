"""What cannot be shown is refused where it is given, with what would fit."""

from dataclasses import replace

import numpy as np
import pytest
import shown

from tcar.viewer import ShownClip, ShownMap
from tcar.viewer.contents import ViewerError
from tcar.viewer.tokens import reading

GREY = np.full((6, 8, 8, 3), 128, np.uint8)
GRIDS = {"semantic": (2, 2, 2), "motion": (1, 2, 2)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frames": GREY.astype(float)}, "of uint8; got float64"),
        ({"frames": GREY[..., :1]}, r"must be \[t, h, w, 3\]"),
        ({"frames": GREY[:0]}, "it is empty"),
        ({"frames": GREY.tolist()}, "expected a numpy array"),
        ({"seconds": 0.0}, "above 0"),
        ({"events": (("push", 0.6, 0.4),)}, "'push' must have 0 <= start <= end <= 1"),
        ({"moment": 1.2}, "moment"),
        ({"roles": {"hand": np.zeros((6, 8, 8))}}, "mask 'hand'.*of bool; got float64"),
        ({"probability": (np.array([0.5, 0.2]), np.array([0.1, 0.2]))}, "times must rise"),
        ({"importance": {"shapley": (np.array([0.5]), np.array([0.1, 0.2]))}}, "shapley: 1 times, but 2 values"),
        ({"importance": {"shapley": (np.array([0.5]), np.array([np.nan]))}}, "not finite"),
        ({"attention": {"self0": -np.ones((1, 3, 3))}}, "at least 0"),
        ({"maps": (ShownMap("a", "motion", np.ones((1, 2, 2))),) * 2}, r"more than one map of \('a', 'motion'\)"),
    ],
)
def test_clips(given, said):
    with pytest.raises(ViewerError, match=said):
        ShownClip(**{"name": "clip", "frames": GREY} | given)


def test_a_map_with_values_below_0_is_signed():
    with pytest.raises(ViewerError, match="signed=True"):
        ShownMap("occlusion", "motion", np.array([[[-1.0, 1.0]]]))
    ShownMap("occlusion", "motion", np.array([[[-1.0, 1.0]]]), signed=True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"clips": ()}, "one or two clips"),
        ({"streams": ("semantic", "depth")}, "no .* for depth"),
        ({"grids": {"semantic": (2, 2, 0), "motion": (1, 2, 2)}}, "from 1 on"),
        ({"answers": {"motion": [("a", 1.0)]}}, "needs 'neither'"),
        ({"answers": {"neither": []}}, "at least the target"),
        ({"answers": {"neither": [("a", 1.2)]}}, r"lie in \[0, 1\]"),
        ({"answers": {"neither": [("a", 1.0)], "sematic": [("a", 1.0)]}}, "did you mean 'semantic'"),
        ({"windows": {"semantic_from_depth": None}}, "semantic, motion"),
        ({"windows": {"semantic_from_motion": np.ones((8, 3), bool)}}, r"must be \[8, 8\] for the grids"),
        ({"point": (0.0, float("nan"))}, "finite"),
    ],
)
def test_contents(changed, said):
    with pytest.raises(ViewerError, match=said):
        shown.small(0, **changed)


def test_what_is_of_one_clip_alone_or_of_other_grids():
    contents = shown.small(0)
    clip = contents.clips[0]
    with pytest.raises(ViewerError, match="there is one clip"):
        replace(contents, clips=contents.clips[:1])
    with pytest.raises(ViewerError, match="did you mean 'motion'"):
        replace(contents, clips=(replace(clip, maps=(ShownMap("a", "motions", np.ones((1, 2, 2))),)),) * 2)
    with pytest.raises(ViewerError, match="'self0' is over 5 tokens, but the grids have 8 of semantic and 8 of motion"):
        replace(contents, clips=(replace(clip, attention={"self0": np.ones((1, 5, 5))}),) * 2)


@pytest.mark.parametrize(
    ("name", "shape", "readers", "keys"),
    [
        ("block1.semantic_from_motion", (2, 8, 4), [("semantic", 8)], [("motion", 4)]),
        ("self0", (2, 13, 13), [("readout", 1), ("semantic", 8), ("motion", 4)], None),
        ("self0.motion", (2, 5, 5), [("readout", 1), ("motion", 4)], None),
        ("mean", (1, 1, 12), [("readout", 1)], [("semantic", 8), ("motion", 4)]),
        ("cross.semantic", (2, 1, 8), [("readout", 1)], [("semantic", 8)]),
        ("block0.joint", (2, 12, 12), [("semantic", 8), ("motion", 4)], None),
        ("block0.motion", (2, 6, 6), [("motion", 4), ("fusion tokens", 2)], None),
    ],
)
def test_who_reads_whom(name, shape, readers, keys):
    assert reading(name, shape, ("semantic", "motion"), GRIDS) == (readers, keys or readers)


@pytest.mark.parametrize(("name", "shape"), [("b.motion_from_semantic", (1, 8, 4)), ("b.motion_from_depth", (1, 4, 4))])
def test_attention_that_fits_no_grid(name, shape):
    with pytest.raises(ValueError, match=name):
        reading(name, shape, ("semantic", "motion"), GRIDS)
