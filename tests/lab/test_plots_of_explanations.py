"""The figures of explanations show what they are given, in their order, stamped, and no label lies on another."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_plots import entry

from tcar.explain.methods import LABELS
from tcar.explain.showing import overlay
from tcar.lab.plots import GROUPS, MOTION, SEMANTIC, explanations
from tcar.tabletop.templates import FAMILIES
from tcar.tabletop.templates import LABELS as CLASSES

UNKNOWN = {"value": None, "low": None, "high": None}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def written(figure) -> dict[str, list]:
    """Where each text of a figure stands once it is drawn; of ticks, those that lie within their axis."""
    figure.draw_without_rendering()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    texts += [text for text in (figure._supxlabel, figure._supylabel) if text]
    for axis in figure.axes:
        texts += [*axis.texts, axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label]
        for line in (axis.xaxis, axis.yaxis):
            low, high = sorted(line.get_view_interval())
            texts += [tick.label1 for tick in line.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label2 for tick in line.get_major_ticks() if low <= tick.get_loc() <= high]
    return {text.get_text(): text.get_window_extent() for text in texts if text.get_visible() and text.get_text()}


def check_labels(figure) -> None:
    """No text lies on another, none is cut off by the edge of the figure."""
    found = written(figure)
    for (a, box), (b, other) in itertools.combinations(found.items(), 2):
        assert not box.padded(-0.5).overlaps(other.padded(-0.5)), (a, b)
    for text, box in found.items():
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text


def dots(axis, marker: str) -> list[tuple[float, float]]:
    lines = [line for line in axis.lines if line.get_marker() == marker]
    return [tuple(np.asarray(point, float)) for line in lines for point in line.get_xydata()]


def twins() -> list[dict]:
    rows = [{"pair": "all", "group": None, "stream": "motion", "clips": 9, "flips": entry(0.5)}]
    for number, pair in enumerate(pair for family in FAMILIES.values() for pair in family.pairs):
        for stream in ("semantic", "motion"):
            flips = entry(0.2 + 0.04 * number) if stream == "motion" else entry(0.3)
            told = {"pair": [CLASSES[one] for one in pair.twins], "group": pair.group}
            rows.append(told | {"stream": stream, "clips": 9, "flips": flips})
    return rows


def test_every_pair_of_twins_stands_once_by_group_and_no_label_on_another():
    rows = twins()
    figure = explanations.exchanged(rows)
    axis = figure.axes[0]
    pairs = {"\n".join(row["pair"]): row["group"] for row in rows[1:]}
    named = [tick.get_text() for tick in axis.get_yticklabels()]
    assert len(named) == 17 and set(named) == set(pairs)
    assert [group for group, _ in itertools.groupby(pairs[name] for name in named)] == list(GROUPS)
    assert [text.get_text().replace("\n", " ") for text in axis.texts] == list(GROUPS)
    semantic, motion = dots(axis, "o"), dots(axis, "s")
    assert {x for x, _ in semantic} == {0.3} and len(semantic) == 17
    value = {"\n".join(row["pair"]): row["flips"]["value"] for row in rows[1:] if row["stream"] == "motion"}
    assert [x for x, _ in motion] == [value[name] for name in named]
    for group in GROUPS:  # those that motion flips most come first
        own = [value[name] for name in named if pairs[name] == group]
        assert own == sorted(own, reverse=True)
    assert figure.get_figheight() < 4.8
    check_labels(figure)


@pytest.mark.parametrize("flips", [UNKNOWN, UNKNOWN | {"value": 0.5}])
def test_a_pair_whose_share_is_unknown_has_a_name_and_no_mark(flips):
    rows = [{"pair": ["up", "down"], "group": None, "stream": "motion", "clips": 0, "flips": flips}]
    axis = explanations.exchanged(rows).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["up\ndown"]
    assert dots(axis, "s") == ([] if flips is UNKNOWN else [(0.5, 0.17)])
    assert not [line for line in axis.lines if line.get_color() == MOTION and line.get_marker() == "None"]


def clip(decisive: bool = True, moments: int = 12) -> dict:
    draw = np.random.default_rng(0)
    mask = np.zeros((moments, 24, 32), bool)
    mask[: moments // 2, 5:15, 8:20] = True
    maps = {(method, stream): draw.normal(size=grid) for method in ("exchanged_cells", "gradient_rollout", "grad_cam")
            for stream, grid in (("semantic", (4, 3, 3)), ("motion", (2, 3, 3)))}  # fmt: skip
    passed = {(method, stream): method == "exchanged_cells" for method, stream in maps if method != "grad_cam"}
    return {
        "name": "Putting something similar to other things that are already on the table",
        "against": "Taking one of many similar things on the table" if decisive else "",
        "frames": draw.integers(0, 256, (moments, 24, 32, 3), dtype=np.uint8),
        "decisive": mask if decisive else None, "maps": maps, "passed": passed,
    }  # fmt: skip


def test_a_failing_method_carries_the_stamp_and_one_that_was_not_tested_says_so():
    figure = explanations.maps([clip()])
    frames, *strips = figure.axes
    assert "against: Taking one of many" in frames.get_title(loc="left")
    stamps = {axis.get_ylabel().replace("\n", " "): [text.get_text() for text in axis.texts] for axis in strips}
    said = {"exchanged_cells": [], "gradient_rollout": ["not of\nthe model"], "grad_cam": ["not\ntested"]}
    wanted = {f"{LABELS[method]} {stream} stream": text for method, text in said.items()
              for stream in ("semantic", "motion")}  # fmt: skip
    assert stamps == wanted
    red, grey = (strips[place].texts[0].get_bbox_patch() for place in (2, 4))
    assert to_hex(red.get_facecolor()) == "#b00020" and to_hex(grey.get_facecolor()) == "#6b6b6b"
    check_labels(figure)
    for axis in strips[2:]:  # beside the pictures
        assert axis.texts[0].get_bbox_patch().get_window_extent().x0 >= axis.get_window_extent().x1


def test_strips_show_six_moments_of_frames_and_of_magnitudes():
    told = clip()
    frames, first, *_ = explanations.maps([told]).axes
    assert len(frames.images) == len(first.images) == 6
    chosen = [1, 3, 5, 7, 9, 11]
    for image, moment in zip(frames.images, chosen, strict=True):
        np.testing.assert_array_equal(image.get_array(), told["frames"][moment])
    heat = overlay(told["frames"], np.abs(told["maps"]["exchanged_cells", "semantic"]))
    for image, moment in zip(first.images, chosen, strict=True):
        np.testing.assert_allclose(image.get_array(), heat[moment])


def test_the_outline_follows_the_mask_and_stands_on_every_strip():
    for axis in explanations.maps([clip()]).axes:
        outlines = [path.vertices for lines in axis.collections for path in lines.get_paths() if len(path.vertices)]
        assert len(outlines) == 2 * 3  # black and white, in the moments that have some
        for corners in outlines:
            column = int(corners[:, 0].mean() * 6)
            left, right = corners[:, 0].min() * 6 - column, corners[:, 0].max() * 6 - column
            np.testing.assert_allclose([left, right], [8 / 32, 20 / 32], atol=0.5 / 32)
            np.testing.assert_allclose([corners[:, 1].min(), corners[:, 1].max()], [1 - 15 / 24, 1 - 5 / 24], atol=1e-6)
    assert not any(axis.collections for axis in explanations.maps([clip(decisive=False)]).axes)


@pytest.mark.parametrize(("count", "moments"), [(1, 12), (2, 6), (3, 4)])
def test_clips_fit_a_page_and_their_frames_keep_their_shape(count, moments):
    figure = explanations.maps([clip(decisive=False, moments=moments) | {"against": "up " * 20}] * count)
    figure.draw_without_rendering()
    assert len(figure.axes) == 7 * count and figure.get_figheight() <= 8.7
    box = figure.axes[0].get_window_extent()
    assert box.width / min(6, moments) / box.height == pytest.approx(32 / 24, rel=0.08)
    check_labels(figure)


def scored() -> tuple[list[dict], list[dict]]:
    scores, verdicts = [], []
    for number, method in enumerate([*list(LABELS)[:10], "even", "random", "centre", "frame_difference"]):
        for stream in ("semantic", "motion"):
            value = entry(round(0.5 - 0.03 * number + 0.01 * (stream == "motion"), 2))
            row = {"method": method, "stream": stream, "mask": "decisive", "group": "all", "mass": value}
            row["most"] = {"value": 0.8, "low": None, "high": None}
            scores += [row, row | {"group": "bound"}, row | {"mask": "mover"}]
            if number < 10:
                verdicts.append({"method": method, "stream": stream, "passed": [True, False, None][number % 3]})
    return scores[::-1], verdicts


def test_methods_stand_by_mass_and_their_marks_and_names_say_how_they_were_judged():
    figure = explanations.scores(*scored())
    figure.draw_without_rendering()
    axis = figure.axes[0]
    named = [tick.get_text() for tick in axis.get_yticklabels()]
    assert named[:3] == ["Exchanged cells, motion", "Exchanged cells, semantic",
                         "Attention rollout, motion (not of the model)"]  # fmt: skip
    assert named[4] == "Attention rollout to pixels, motion (not tested)"
    assert named[-1] == "Frame difference (no model), semantic" and len(named) == 28
    judged, untested, references = dots(axis, "o"), dots(axis, "x"), dots(axis, "D")
    assert (len(judged), len(untested), len(references), len(dots(axis, "|"))) == (14, 6, 8, 28)
    values = [x for x, _ in sorted([*judged, *untested, *references], key=lambda point: point[1])]
    assert values == sorted(values, reverse=True) and len({y for _, y in dots(axis, "|")}) == 28
    for line in axis.lines:
        if line.get_marker() == "o":
            place = int(line.get_ydata()[0])
            filled = line.get_markerfacecolor() != "white"
            assert filled != named[place].endswith("(not of the model)")
            assert line.get_color() == (SEMANTIC if ", semantic" in named[place] else MOTION)
    assert figure.legends[0].get_window_extent().y1 <= axis.get_tightbbox().y0
    check_labels(figure)


def test_a_method_without_a_score_stands_last_and_has_no_mark():
    scores, verdicts = scored()
    lost = {"method": "tubes", "stream": "motion", "mask": "decisive", "group": "all", "mass": UNKNOWN, "most": UNKNOWN}
    kept = [row for row in scores if (row["method"], row["stream"]) != ("tubes", "motion")]
    axis = explanations.scores([lost, *kept], verdicts).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()][-1].startswith("Occluded tubes, motion")
    places = [y for marker in "oxD|" for _, y in dots(axis, marker)]
    assert set(places) == set(range(27))


def curve(end: float | None, low: float | None = 0.1) -> dict:
    values = {"values": [0.2, None, 0.9], "low": [low] * 3, "high": [0.95] * 3}
    return {"times": [0.25, 0.5, 1.0], **values, "event_end": end}


def test_growing_clips_have_a_curve_and_a_tick_a_group():
    figure = explanations.growing({"bound": curve(0.75), "motion": curve(0.5), "one frame": curve(None)})
    above, below = figure.axes
    lines = [line for line in above.lines if line.get_marker() == "o"]
    assert [line.get_label() for line in lines] == ["one frame", "motion", "bound"]
    np.testing.assert_allclose(lines[0].get_xydata(), [[0.25, 0.2], [0.5, np.nan], [1, 0.9]])
    ticks = [(line.get_xdata()[0], line.get_color()) for line in below.lines]
    assert ticks == [(0.5, GROUPS["motion"]), (0.75, GROUPS["bound"])]
    spans = [sorted(line.get_ydata()) for line in below.lines]
    assert spans[0][1] < spans[1][0]  # none hides another, wherever they lie
    check_labels(figure)


def test_without_events_there_are_no_ticks_and_one_group_needs_no_legend():
    figure = explanations.growing({"all": curve(None, low=None)})
    assert len(figure.axes) == 1 and not figure.legends


def head(fusion: str, block: str, **measures) -> dict:
    return {"fusion": fusion, "block": block, "head": 0, "relative_entropy": 0.5, "space": 0.2, "time": 0.3} | measures


def test_heads_without_a_measure_have_no_dot_and_no_place_in_the_legend():
    rows = [head("headline", f"block{n}.{way}", space=None, time=0.1 + 0.1 * n)
            for n in range(3) for way in ("semantic_from_motion", "motion_from_semantic")]  # fmt: skip
    rows += [head("headline", "self0", relative_entropy=None), head("joint window", "self0", space=None, time=None)]
    rows += [head("joint window", "block0.semantic_from_motion")]
    figure = explanations.heads(rows)
    space, time = figure.axes
    assert dots(space, "o") == [] and dots(space, "^") == [(0.2, 0.5)]
    assert sorted(dots(time, "o")) == sorted((0.1 + 0.1 * n, 0.5) for n in range(3) for _ in range(2))
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[:3] == ["headline", "joint window", "block 0, semantic reads motion"] and len(named) == 8
    assert not any("readout" in name for name in named)
    check_labels(figure)


def test_no_heads_at_all_leave_the_panels_empty():
    figure = explanations.heads([head("headline", "self0", relative_entropy=None)])
    assert [len(axis.lines) for axis in figure.axes] == [0, 0]
    check_labels(figure)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (4, 1), (6, 2)])
def test_what_frames_read_has_one_scale_and_every_panel_its_map(count, rows):
    given = {f"fusion {n}, motion from semantic": np.full((4, 8), 0.1 + 0.1 * n) for n in range(count)}
    figure = explanations.frames_read(given)
    panels = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title().replace("\n", ", ") for axis in panels] == list(given)
    for axis, values in zip(panels, given.values(), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), values)
        assert axis.images[0].get_clim() == (0, pytest.approx(0.1 * count))
        assert axis.get_ylim() == (4.5, 0.5) and axis.get_xlim() == (0.5, 8.5)
    assert len([axis for axis in figure.axes if axis.get_ylabel() == "share of what is read"]) == 1
    assert figure.axes[0].get_subplotspec().get_gridspec().nrows == rows
    check_labels(figure)
