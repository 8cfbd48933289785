"""The figures show the numbers they are given, say what is synthetic, and are the same bytes every time."""

import itertools
import json
from types import SimpleNamespace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from tcar.explain.showing import overlay
from tcar.lab import numerals, plots
from tcar.lab.plots import attention, data, features, scores, training

GROUPS = ["motion", "bound"]


@pytest.fixture
def run(tmp_path):
    return SimpleNamespace(figures_dir=tmp_path / "figures", material="tabletop")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def entry(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.05}


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)


def draw_methods():
    return scores.methods(
        {
            "semantic": {"top1": entry(0.4), "twin_accuracy": entry(0.2)},
            "cross_attention": {"top1": entry(0.8), "twin_accuracy": entry(0.7)},
        },
        confidence=0.95,
    )


def test_save_writes_three_files_that_do_not_change(run):
    numbers = {"b": np.float32(0.1), "a": [np.int64(3), float("nan")]}
    plots.save(draw_methods(), run, "methods", numbers)
    first = {path.name: path.read_bytes() for path in run.figures_dir.iterdir()}
    assert set(first) == {"methods.pdf", "methods.png", "methods.json"}
    assert json.loads(first["methods.json"]) == {"a": [3, None], "b": 0.1}
    assert b"CreationDate" not in first["methods.pdf"]
    plots.save(draw_methods(), run, "methods", numbers)
    assert {path.name: path.read_bytes() for path in run.figures_dir.iterdir()} == first


def test_every_saved_figure_names_its_dataset(run):
    figure = draw_methods()
    plots.save(figure, run, "methods", {})
    assert figure.get_suptitle() == "Tabletop (synthetic)"
    for material, title in (("ssv2", "Something-Something-V2"), ("rehearsal", "rendered imitation of")):
        run.material = material
        plots.save(figure, run, "methods", {})
        assert figure.get_suptitle().startswith(title)


def test_png_is_small_and_as_large_as_the_column(run):
    plots.save(draw_methods(), run, "methods", {})
    png = run.figures_dir / "methods.png"
    assert Image.open(png).width == int(3.25 * 150)
    assert png.stat().st_size < 40_000


def test_every_fusion_has_a_name_and_a_colour_of_its_own():
    from tcar.fusion.kinds import list_fusions
    from tcar.fusion.settings import METHODS

    colours = [plots.colour(kind) for kind in list_fusions()]
    assert len(set(colours)) == len(colours)
    assert len({plots.label(method) for method in METHODS}) == len(METHODS)
    assert plots.label("sum_averaged") == "Sum of scores (additive), appearance averaged"
    assert plots.colour("sum_averaged") == plots.colour("sum")
    assert numerals.readable("sum_averaged") == plots.label("sum_averaged")
    named = ["sum_averaged", "else", "sum", "semantic_averaged", "joint"]
    assert plots.in_order(named, plots.METHODS) == ["semantic_averaged", "sum", "sum_averaged", "joint", "else"]
    with pytest.raises(KeyError, match="tcar/lab/plots/__init__.py"):
        plots.label("no_such_method")


# What an eye sees of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1.0).
EYES = {
    "usual": np.eye(3),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def lab(colour: str, eye: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (1976, white of D65) of a colour as an eye sees it."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = eye @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                    [0.0193339, 0.1191920, 0.9503041]]) @ linear.clip(0, 1)  # fmt: skip
    share = xyz / np.array([0.95047, 1, 1.08883])
    root = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def test_the_conversion_is_that_of_the_standard():
    np.testing.assert_allclose(lab("#FFFFFF", np.eye(3)), [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab("#FF0000", np.eye(3)), [53.24, 80.09, 67.20], atol=0.02)
    np.testing.assert_allclose(lab("#808080", np.eye(3)), [53.59, 0, 0], atol=0.02)


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("shown", [plots.METHODS, plots.GROUPS, plots.SPLITS], ids=["methods", "groups", "splits"])
def test_any_two_colours_of_one_figure_differ_to_every_eye(shown, eye):
    """A parameter file may put any methods into one figure. A distance of 2 is just seen side by side."""
    colours = {name: value[1] if isinstance(value, tuple) else value for name, value in shown.items()}
    seen = {name: lab(colour, EYES[eye]) for name, colour in colours.items()}
    near = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(seen, 2)}
    pair = min(near, key=near.get)
    assert near[pair] > 15, (pair, near[pair])
    assert all(place[0] < 90 for place in seen.values())  # on white paper


def test_wrap_keeps_short_names_and_marks_what_it_cuts():
    assert plots.wrap("Moving something up", 30) == "Moving something up"
    cut = plots.wrap("Moving something and something so they pass each other", 20, 2)
    assert cut.endswith("…")
    assert all(len(line) <= 20 for line in cut.splitlines())
    assert cut.count("\n") == 1


def test_contact_sheet_shows_every_class_once():
    clips = {f"class {number}": frames(6, number) for number in range(5)}
    figure = data.contact_sheet(clips)
    shown = [axis.get_ylabel() for axis in figure.axes if axis.images]
    assert sorted(shown) == sorted(clips)
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert {picture.shape for picture in pictures} == {(54, 6 * 72, 3)}


def test_previews_play_every_class_at_once_whatever_its_shape(tmp_path):
    clips = {f"class {number}": frames(6, number) for number in range(4)}
    clips["wide"] = np.full((6, 90, 320, 3), 200, np.uint8)
    played = data.previews(clips, columns=3, width=60)
    height = 26 + 45
    assert played.shape == (6, 2 * height, 3 * 60, 3)
    assert (played[:, height + 26 : 2 * height, 60:120] == 200).all()  # the fifth, in its tile
    assert (played[:, height:, 120:] == 255).all()  # no sixth
    run = SimpleNamespace(figures_dir=tmp_path)
    with Image.open(plots.save_animation(played, run, "previews", {"wide": "7"})) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (6, (180, 2 * height), 0)
    assert json.loads((tmp_path / "previews.json").read_text()) == {"wide": "7"}


def test_twin_probes_say_every_value_and_frame_what_theory_settles():
    twins = ["Moving something up", "Moving something down"]
    rows = [
        {"twins": twins, "probe": "first frame", "value": 0.71, "blind": False, "sufficient": True, "group": "motion"},
        {"twins": twins, "probe": "true flow", "value": 1.0, "blind": False, "sufficient": True, "group": "motion"},
        {"twins": twins, "probe": "file size", "value": 0.5, "blind": True, "sufficient": False, "group": "motion"},
    ]
    axis = data.twin_probes(rows).axes[0]
    assert [text.get_text() for text in axis.texts] == ["71", "100", "50", "motion"]
    assert [text.get_fontweight() for text in axis.texts[:3]] == ["bold", "bold", "normal"]
    assert [patch.get_x() for patch in axis.patches] == [pytest.approx(1.54)]


def test_class_balance_stacks_the_splits():
    counts = {"train": {"up": 6, "down": 4}, "test": {"up": 2, "down": 3}}
    axis = data.class_balance(counts).axes[0]
    assert [patch.get_width() for patch in axis.patches] == [6, 4, 2, 3]
    assert [patch.get_x() for patch in axis.patches] == [0, 0, 6, 4]


def test_class_balance_of_many_classes_is_ranked():
    counts = {"train": {f"{number:03d}": number + 1 for number in range(174)}}
    line = data.class_balance(counts).axes[0].lines[0]
    assert list(line.get_ydata()) == list(range(174, 0, -1))


@pytest.mark.parametrize("count", [5, 50])
def test_frame_differences_rank_the_classes_by_their_median(count):
    spread = {f"class {i:02d}": {"low": i - 0.5, "median": float(i), "high": i + 2.0} for i in range(count)}
    axis = data.frame_differences(spread).axes[0]
    values = axis.lines[0].get_xydata()[:, 0 if count == 5 else 1]
    assert values.tolist() == list(range(count - 1, -1, -1))
    if count == 5:
        assert axis.get_yticklabels()[0].get_text() == "class 04"
        assert [segment[:, 0].tolist() for segment in axis.collections[0].get_segments()][0] == [3.5, 6.0]


def test_words_show_the_commonest_first_and_no_more_than_asked():
    left, right = data.words({f"word {i}": 30 - i for i in range(20)}, {"Pushing": 3, "Putting": 2}, most=16).axes
    assert [bar.get_width() for bar in left.patches] == list(range(30, 14, -1))
    assert [label.get_text() for label in right.get_yticklabels()] == ["Pushing", "Putting"]


def test_durations_are_shares_of_each_split():
    axis = data.durations({"train": [2.0] * 30, "test": [2.0, 4.0]}).axes[0]
    assert max(axis.patches[0].get_xy()[:, 1]) == pytest.approx(1.0)
    assert max(axis.patches[1].get_xy()[:, 1]) == pytest.approx(0.5)


def test_probes_draw_each_interval_where_it_is():
    values = {group: {"first_frame": entry(0.5), "oracle": entry(0.9)} for group in GROUPS}
    axes = data.probes(values, confidence=0.95, chance=0.5).axes
    assert [axis.get_title() for axis in axes] == GROUPS
    interval, dot = axes[1].lines[2:4]
    np.testing.assert_allclose(interval.get_xydata(), [[0.8, 1], [0.95, 1]])
    np.testing.assert_allclose(dot.get_xydata(), [[0.9, 1]])
    assert axes[0].lines[-1].get_xdata()[0] == 0.5


def test_pca_colours_are_the_principal_components():
    tokens = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 12)) @ np.diag(np.linspace(3, 0.1, 12))
    colours = features.pca_colours(tokens)
    assert colours.shape == (2, 3, 4, 4, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    components = PCA(3).fit_transform(tokens.reshape(-1, 12))
    inside = (colours.reshape(-1, 3) > 0) & (colours.reshape(-1, 3) < 1)
    for column in range(3):
        kept = inside[:, column]
        correlation = np.corrcoef(components[kept, column], colours.reshape(-1, 3)[kept, column])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-6)


def test_pca_colours_of_constant_tokens_are_no_error():
    assert np.isfinite(features.pca_colours(np.ones((1, 2, 2, 2, 5)))).all()


def test_overlay_heats_the_right_place_at_the_right_time():
    weights = np.zeros((4, 3, 4))
    weights[2, 0, 3] = 0.2
    picture = overlay(np.full((8, 24, 32, 3), 90, np.uint8), weights)
    change = np.abs(picture - 90 / 255).sum(axis=-1)
    assert set(np.nonzero(change.max(axis=(1, 2)))[0]) == {4, 5}
    assert change[4, 4, 28] == change.max()
    assert change[4, 12:].max() == change[4, :, :16].max() == 0


def test_overlay_leaves_an_even_map_transparent():
    clip = frames(4)
    picture = overlay(clip, np.full((2, 3, 4), 1 / 24))
    np.testing.assert_allclose(picture, clip.mean(axis=-1, keepdims=True).repeat(3, axis=-1) / 255)


def test_curves_mark_the_kept_epoch():
    history = [
        {"epoch": e, "train_loss": 1 / e, "validation_loss": 2 / e, "validation_top1": e / 10}
        for e in (1, 2, 3)
    ]
    figure = training.curves(
        {"motion": {0: history}, "semantic": {0: history}}, {"motion": [2], "semantic": [3]}
    )
    kept = figure.axes[3].lines[1]
    assert [point.item() for point in kept.get_xydata()[0]] == [2, 0.2]
    assert kept.get_color() == plots.MOTION


@pytest.mark.parametrize("groups", [["all"], ["motion", "bound"]])
def test_one_group_needs_no_legend(groups):
    moments = [{"time": t, "value": 0.1, "low": 0.0, "high": 0.2} for t in (0.25, 0.75)]
    assert len(attention.temporal_importance(dict.fromkeys(groups, moments)).legends) == (len(groups) > 1)
