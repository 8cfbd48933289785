"""The figure of the layouts shows every clip once a panel, in the colour of what it is, and its legends lie below."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from tcar.lab.plots import GROUPS, layouts

CLASSES = [f"class {n}" for n in range(12) for _ in range(5)]
GROUP = [list(GROUPS)[int(name.split()[1]) % 4] for name in CLASSES]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def points(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=(len(CLASSES), 2)) for name in ("readout", "motion", "semantic")}


def shown(axis) -> dict[tuple[float, float], str]:
    """The colours of the points of a panel by place."""
    (dots,) = axis.collections
    places = np.asarray(dots.get_offsets()).round(9).tolist()
    return {tuple(at): to_hex(shade) for at, shade in zip(places, dots.get_facecolors(), strict=True)}


def test_every_panel_has_every_clip_in_the_colour_of_what_it_is():
    lengths = [f"{40 + 7 * (n % 11)} frames" for n in range(len(CLASSES))]
    given = points()
    axes = np.array(layouts.layouts(given, {"length": lengths, "group": GROUP, "class": CLASSES}).axes).reshape(3, 3)
    assert [axis.get_title() for axis in axes[0]] == ["by class", "by group of classes", "by length"]
    names = [axis.get_ylabel().replace("\n", " ") for axis in axes[:, 0]]
    assert names == ["Semantic stream", "Motion stream", "Readout"]
    for line, features in zip(axes, ("semantic", "motion", "readout"), strict=True):
        places = [tuple(place) for place in given[features].round(9).tolist()]
        by_class, by_group, by_length = ([shown(axis)[place] for place in places] for axis in line)
        assert by_group == [GROUPS[group].lower() for group in GROUP]
        assert len(set(zip(by_class, CLASSES, strict=True))) == len(set(by_class)) == 12
        light = {int(name.split()[0]): sum(to_rgb(shade)) for name, shade in zip(lengths, by_length, strict=True)}
        assert sorted(light, key=light.get) == sorted(light)  # 103 after 47, as numbers and not as text are
        assert not any(axis.texts for axis in line)


def test_shades_of_a_group_stay_near_its_colour():
    """Each is a mixture of the colour with black or with white, so its hue is the group's."""
    for base in GROUPS.values():
        for shade in layouts.shades(base, 7):
            rgb, own = np.array(to_rgb(base)), np.array(to_rgb(shade))
            towards = np.ones(3) if own.sum() > rgb.sum() else np.zeros(3)
            assert np.linalg.norm(np.cross(own - rgb, towards - rgb)) < 0.01
    assert layouts.shades("#009e73", 1) == ["#009e73"] and layouts.shades("#009e73", 0) == []


def test_legends_lie_below_beside_each_other_and_name_a_few_of_many():
    figure = layouts.layouts(points(), {"class": CLASSES, "group": GROUP, "length": list(range(len(CLASSES)))})
    figure.draw_without_rendering()
    groups, lengths = figure.legends
    assert [text.get_text() for text in groups.get_texts()] == [group for group in GROUPS if group in GROUP]
    assert [text.get_text() for text in lengths.get_texts()] == ["0", "12", "24", "35", "47", "59"]
    left, right = (legend.get_window_extent() for legend in (groups, lengths))
    assert left.x0 >= 0 and left.x1 < right.x0 and right.x1 <= figure.bbox.x1
    assert max(left.y1, right.y1) <= min(axis.get_tightbbox().y0 for axis in figure.axes)


def test_classes_of_one_group_have_a_cycle_of_colours_and_no_legend():
    figure = layouts.layouts(points(), {"class": CLASSES, "group": ["all"] * len(CLASSES)})
    assert [axis.get_title() for axis in figure.axes] == [
        "Semantic stream, by class", "Motion stream, by class", "Readout, by class"
    ]  # fmt: skip
    assert figure.get_figheight() < 3 and not figure.legends
    assert len(set(shown(figure.axes[0]).values())) == 12
