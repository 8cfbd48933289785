"""One call for one video: what it gives, what it says of the truth, and what it refuses."""

import shutil

import matplotlib as mpl
import numpy as np
import pytest
import torch
import twins

import tcar
from tcar.explain import keeping, scoring, study
from tcar.explain.errors import ExplanationError
from tcar.explain.known import known, truth_of
from tcar.explain.methods import METHODS, explain
from tcar.ground.errors import TcarError
from tcar.streams.weights import state_digest
from tcar.tabletop.dataset import load_index

QUICK = ("exchanged_cells", "rollout", "gradient_rollout", "gradient", "frame_ablation")

mpl.use("Agg")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return twins.rendered(tmp_path_factory.mktemp("twins"))


@pytest.fixture(scope="module")
def model(root):
    return twins.model(root)


@pytest.fixture(scope="module")
def clip(root):
    return root / "videos" / f"{twins.test_clips(root)[0]}.webm"


@pytest.fixture(scope="module")
def seen(clip, model):
    return study(clip, model, methods=QUICK, drawn=twins.DRAWN, progress=False)


def test_a_clip_of_tabletop_is_explained_against_its_twin(seen, root, clip, model):
    index, names = load_index(root), model.config.class_names
    twin = index[index[clip.stem]["twin"]]["class"]
    rivals = {index[clip.stem]["class"], twin}
    assert names[seen.against] in rivals
    assert seen.against != seen.target
    assert seen.other.name == f"{index[clip.stem]['twin']}.webm"
    assert set(seen.explanations) == set(QUICK)


def test_answers_are_those_of_predict_and_of_the_twin_where_both_streams_are_exchanged(seen, root, clip, model):
    said = tcar.predict(clip, model, top=3).top
    assert [name for name, _ in seen.answers["neither"]] == [name for name, _ in said]
    np.testing.assert_allclose([p for _, p in seen.answers["neither"]], [p for _, p in said], atol=1e-5)
    twin = tcar.predict(root / "videos" / f"{load_index(root)[clip.stem]['twin']}.webm", model, top=3).top
    np.testing.assert_allclose([p for _, p in seen.answers["both"]], [p for _, p in twin], atol=1e-5)


def test_maps_are_those_of_the_method_itself(seen, model):
    twin = seen.other.clip
    for method in QUICK[:4]:
        alone = explain(model, seen.seen.clip, method, seen.target, seen.against, other=twin)
        for stream, values in alone.maps.items():
            torch.testing.assert_close(values, seen.explanations[method].maps[stream])


def test_scores_are_those_of_the_maps_on_the_masks(seen):
    table = seen.scores()
    row = table[(table.method == "gradient") & (table.stream == "motion") & (table["mask"] == "decisive")].iloc[0]
    values = seen.explanations["gradient"].maps["motion"].abs().double().numpy()
    mask = seen.seen.known.decisive
    t, h, w = values.shape
    inside = total = 0.0  # pixel by pixel, each with the value of the cell its middle lies in
    for k in range(len(mask)):
        cell = values[int((k + 0.5) / len(mask) * t)]
        rows = (np.arange(mask.shape[1]) + 0.5) / mask.shape[1] * h
        columns = (np.arange(mask.shape[2]) + 0.5) / mask.shape[2] * w
        spread = cell[rows.astype(int)][:, columns.astype(int)]
        inside += spread[mask[k]].sum()
        total += spread.sum()
    assert row["mass"] == pytest.approx(inside / total - mask.mean(), abs=2e-3)
    even = table[(table.method == "even") & (table["mask"] == "decisive")]
    np.testing.assert_allclose(even["mass"], 0, atol=1e-9)
    np.testing.assert_allclose(even["auc"], 0.5)
    assert (table["mass"] <= table["most"] + 1e-9).all()


def test_the_frame_difference_is_averaged_to_the_grid_of_the_map(seen):
    table = seen.scores().set_index(["method", "stream", "mask"])
    own = table.loc[("frame_difference", "motion", "decisive")]
    coarse = table.loc[("exchanged_cells", "motion", "decisive")]
    assert own["mass"] == pytest.approx(own["frame_difference_mass"])
    assert coarse["frame_difference_mass"] < own["mass"]  # cells of a quarter of the picture dilute it


def test_what_is_shown_is_what_was_found(seen):
    shown = seen.contents()
    maps = {(one.method, one.stream): one for one in shown.clips[0].maps}
    assert maps["Exchanged cells", "semantic"].values.shape == seen.model.config.semantic_grid
    assert shown.clips[0].decisive.any()
    assert set(shown.clips[0].roles) >= {"mover", "decoy", "reference", "hand"}
    assert shown.footer.synthetic
    window = shown.windows["semantic_from_motion"]
    assert window.sum(axis=1).tolist() == [seen.model.config.motion_grid[0]] * len(window)  # one place, all moments
    assert len(shown.clips) == 2
    assert shown.clips[0].attention["block0.semantic_from_motion"].shape[0] == 4


def test_verdicts_beside_a_model_stamp_its_maps(root, clip, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    weights = state_digest("fusion", model.fusion)
    rows = [{"method": "gradient", "stream": "motion", "passed": False}]
    keeping.keep(tmp_path / "model", weights, rows)
    judged = study(clip, tmp_path / "model", methods=("gradient",), drawn=twins.DRAWN, progress=False)
    passed = {one.stream: one.passed for one in judged.contents().clips[0].maps}
    assert passed == {"motion": False, "semantic": None}
    assert "not of the model" in judged.figure("gradient").get_suptitle()
    assert keeping.kept(tmp_path / "model", "of other weights") == {}
    (tmp_path / "model" / keeping.EXPLAINED).write_text("{")
    with pytest.raises(ExplanationError, match=r"explained\.json: damaged"):
        keeping.kept(tmp_path / "model", weights)


def test_figures_and_a_page_are_made_of_it(seen, tmp_path):
    assert len(seen.figure("gradient").axes) == 3 * 8
    assert seen.figure("frame_ablation").axes[0].patches
    page = seen.to_html(tmp_path / "page.html")
    assert page.stat().st_size < 200_000
    with pytest.raises(TcarError, match="nowhere"):
        seen.to_html(tmp_path / "nowhere" / "page.html")


def test_a_video_of_no_dataset_needs_nothing_more_than_itself(clip, model, tmp_path):
    alone = tmp_path / "mine.webm"
    shutil.copy(clip, alone)
    found = study(alone, model, methods=("gradient",), progress=False)
    assert found.against is None
    assert set(found.answers) == {"neither"}
    assert not found.contents().footer.synthetic
    with pytest.raises(ExplanationError, match="known of Tabletop's clips alone"):
        found.scores()


def test_settings_that_draw_another_clip_are_told(clip, model, root):
    wrong = study(clip, model, methods=("gradient",), progress=False)  # of the demo, whose clips have other lengths
    assert wrong.seen.known.decisive is None
    assert any("Where the twins differ is not shown" in one for one in wrong.contents().footer.remarks)
    with pytest.raises(ExplanationError, match="where the twins differ is not known"):
        wrong.scores()
    with pytest.raises(ExplanationError, match="no clip '0'"):
        truth_of(root, "0", twins.DRAWN)
    assert known(np.zeros((2, 4, 4, 3), np.uint8)) is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"methods": ("gradents",)}, "did you mean 'gradient'"),
        ({"target": "Doing nothin"}, "did you mean 'Doing nothing'"),
        ({"target": 7}, "classes 0 to 2"),
        ({"target": 2, "against": "Doing nothing"}, "the target as well"),
    ],
)
def test_what_cannot_be_asked_is_said(clip, model, asked, said):
    with pytest.raises(ExplanationError, match=said):
        study(clip, model, drawn=twins.DRAWN, progress=False, **asked)


def test_one_frame_and_methods_that_need_another_clip_are_refused(model, seen):
    with pytest.raises(ExplanationError, match="one frame"):
        study(np.zeros((1, 24, 32, 3), np.uint8), model, progress=False)
    with pytest.raises(ExplanationError, match="takes another clip's cells"):
        explain(model, seen.seen.clip, "exchanged_cells", 0, 1)
    with pytest.raises(ExplanationError, match="not of this study"):
        seen.figure("grad_cam")


def test_a_fusion_without_attention_is_explained_without_it(clip, root):
    plain = twins.model(root, kind="late_concat_raw")
    found = study(clip, plain, drawn=twins.DRAWN, progress=False, methods=None)
    assert not {"rollout", "gradient_rollout"} & set(found.explanations)
    assert found.contents().clips[0].attention == {}
    with pytest.raises(ExplanationError, match="attention"):
        explain(plain, found.seen.clip, "rollout", 0)


def test_every_method_has_a_name_for_people():
    from tcar.explain import LABELS

    assert set(LABELS) == set(METHODS)
    assert len(set(LABELS.values())) == len(LABELS)


def test_a_map_of_zeros_scores_as_the_even_one(seen):
    truth, frames = seen.seen.known, {"motion": seen.seen.clip[1][0]}
    rows = scoring.rows({("nothing", "motion"): torch.zeros(2, 3, 3)}, truth, frames)
    by = {(row["method"], row["mask"]): row for row in rows}
    assert by["nothing", "decisive"]["mass"] == by["even", "decisive"]["mass"] == 0
