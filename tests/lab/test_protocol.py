"""The published protocol: views as they are published, one pass for all methods, half of validation for calibration."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip_files import RED, coloured_clips, write_clip
from scipy.special import log_softmax, softmax

from tcar.data import views
from tcar.data.ssv2 import Clip
from tcar.data.video import probe, read_frames
from tcar.data.views import ProtocolReader, cut
from tcar.evaluate import EvaluationError, fit_temperature, metrics, over_seeds
from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.lab import params, results
from tcar.lab.steps import evaluation, methods
from tcar.lab.steps.streams import ROLES, extract, stores, stream
from tcar.streams.grids import pool_tokens

FRAMES = {"semantic": 3, "motion": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of six clips, one of them upright, with their tokens in the store; and fits of two methods, untrained."""
    root = tmp_path_factory.mktemp("run")
    (root / "pyproject.toml").write_text('[project]\nname = "tcar"\n')
    run = params.from_values({
        "name": "t", "dataset": "ssv2", "data_root": str(root), "runs": str(root / "runs"), "device": "cpu",
        "batch_clips": 2, "semantic_frames": 3, "motion_frames": 4, "semantic_grid": [3, 2, 2],
        "motion_grid": [1, 2, 2], "ablation_semantic_grids": [], "ablation_motion_grids": [], "workers": 2,
        "bootstrap_samples": 50,
    })  # fmt: skip
    clips = coloured_clips(root, 5)
    turned = write_clip(root / "tall.webm", RED, frames=7, size=(40, 72))
    clips.append(Clip("tall", turned, 0, "", "", ()))
    found = {"train": [], "validation": clips, "test": []}
    names = {role: store.root.name for role, store in extract(run, found).items()}
    results.save(run.results_dir / "extractors.json", {"stores": names}, params=run)
    return run, clips, {"cross_attention": [fit(0), fit(1)], "late_concat": [fit(2, "late_concat")]}


def fit(seed: int, kind: str = "cross_attention") -> SimpleNamespace:
    torch.manual_seed(seed)
    config = FusionConfig(kind, 128, 128, num_classes=2, width=16, heads=2, blocks=1, mlp_ratio=2)
    return SimpleNamespace(fusion=config, state_dict=create_fusion(config).state_dict())


def scores(one, semantic, motion, xyz) -> np.ndarray:
    model = create_fusion(one.fusion).eval()
    model.load_state_dict(one.state_dict)
    with torch.inference_mode():
        return model(semantic, xyz["semantic"], motion, xyz["motion"]).numpy()


def test_one_view_is_that_of_the_store(made):
    run, clips, fits = made
    found, ids = evaluation.scored_views(run, fits, clips, "1")
    assert ids == [clip.id for clip in clips]
    opened = stores(run)
    tokens = [torch.from_numpy(opened[role].load(ids).astype(np.float32)) for role in ROLES]
    xyz = {role: torch.from_numpy(opened[role].coordinates) for role in ROLES}
    for method, some in fits.items():
        for one, logits in zip(some, found[method], strict=True):
            np.testing.assert_allclose(logits, log_softmax(scores(one, *tokens, xyz), axis=1), atol=5e-3)


def three_crops(clip):
    """The squares at the beginning, middle and end of the longer side of a clip [t h w 3]."""
    side, longer = min(clip.shape[1:3]), max(clip.shape[1:3])
    starts = (0, (longer - side) // 2, longer - side)
    return torch.stack([clip[:, s : s + side] if clip.shape[1] == longer else clip[:, :, s : s + side] for s in starts])


def test_six_views_are_decoded_cut_and_averaged_as_published(made):
    run, clips, fits = made
    found, _ = evaluation.scored_views(run, fits, clips, "2x3")
    streams = {role: stream(run, role) for role in ROLES}
    for row, clip in enumerate(clips):
        count, chances = probe(clip.path).frames, []
        for first in (0.0, 0.5):  # of a segment
            for place in (0, 1, 2):
                tokens, xyz = [], {}
                for role in ROLES:
                    times = [int((part + first) * count / FRAMES[role]) for part in range(FRAMES[role])]
                    frames = torch.from_numpy(read_frames(clip.path, times))
                    square = three_crops(frames)[place]
                    pooled = pool_tokens(streams[role](square[None]), tuple(getattr(run.streams, f"{role}_grid")))
                    tokens.append(pooled.values.flatten(1, 2))
                    xyz[role] = pooled.coordinates.flatten(0, 1)
                chances.append([softmax(scores(one, *tokens, xyz)[0]) for some in fits.values() for one in some])
        mean = np.mean(chances, axis=0)
        given = [logits[row] for some in found.values() for logits in some]
        np.testing.assert_allclose(softmax(given, axis=1), mean, atol=1e-5)
        assert np.ptp([chance[0][0] for chance in chances]) > 1e-3  # the views differ


def test_what_is_scored_is_not_scored_again_and_a_bad_clip_is_missing_for_all(made, monkeypatch, caplog, tmp_path):
    run, clips, fits = made
    run = replace(run, common=replace(run.common, seed=9))
    broken = tmp_path / "broken.webm"
    broken.write_bytes(clips[1].path.read_bytes()[:900])
    clips = [clips[0], replace(clips[1], id="bad", path=broken), *clips[2:]]
    calls, score = [], evaluation._Scorer.__call__

    def killed(scorer, found):
        calls.append(len(found))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(scorer, found)

    monkeypatch.setattr(evaluation._Scorer, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluation.scored_views(run, fits, clips, "2x3")
    found, ids = evaluation.scored_views(run, fits, clips, "2x3")
    assert calls == [1, 2, 2, 2]  # the first batch once, and without its bad clip
    assert ids == [clip.id for clip in clips if clip.id != "bad"]
    assert "1 of 6 clips left out: bad (" in caplog.text
    assert {logits.shape for some in found.values() for logits in some} == {(5, 2)}
    again, _ = evaluation.scored_views(run, fits, clips, "2x3")
    assert len(calls) == 4
    np.testing.assert_array_equal(again["late_concat"][0], found["late_concat"][0])
    other, _ = evaluation.scored_views(run, {"late_concat": [fit(5, "late_concat")]}, clips, "2x3")
    assert len(calls) == 7 and not np.allclose(other["late_concat"][0], found["late_concat"][0])
    assert len(list((run.run_dir / "views").glob("2x3-*"))) == 1


def test_streams_of_other_weights_are_refused(made, monkeypatch):
    run, clips, fits = made
    changed = stream(run, "motion")
    next(changed.backbone.parameters()).data += 1
    monkeypatch.setattr(evaluation, "stream", lambda run, role: changed if role == "motion" else stream(run, role))
    with pytest.raises(EvaluationError, match="motion: i3d_tiny has other weights now"):
        evaluation.scored_views(run, fits, clips[:2], "1")


def test_rows_have_each_method_and_protocol(made, monkeypatch):
    run, clips, fits = made
    run = replace(run, evaluation=replace(run.evaluation, evaluation_split="validation", evaluation_views=["1", "2x3"]))
    monkeypatch.setattr(evaluation, "healthy_clips", lambda run, split: {split: clips})
    monkeypatch.setattr(methods, "class_names", lambda run: ["red", "blue"])
    labels = np.array([clip.label for clip in clips])
    one_view = {name: over_seeds([metrics(np.eye(2)[labels], labels)]) for name in (*fits, "timesformer_vitb16")}
    rows = evaluation.protocol_rows(run, fits, one_view, [clip.id for clip in clips])
    assert [(row["views"], row["method"]) for row in rows] == [
        ("1", "cross_attention"), ("1", "late_concat"), ("1", "timesformer_vitb16"), ("2x3", "cross_attention"),
        ("2x3", "late_concat"),
    ]  # fmt: skip
    found, _ = evaluation.scored_views(run, fits, clips, "2x3")
    wanted = np.mean([logits.argmax(1) == labels for logits in found["cross_attention"]])
    assert rows[3]["top1"]["value"] == pytest.approx(wanted) and rows[3]["clips"] == 6
    assert rows[0]["top1"]["value"] == rows[0]["top5"]["value"] == 1.0
    assert rows[3]["top1"]["low"] <= wanted <= rows[3]["top1"]["high"]


@pytest.mark.parametrize("size", [(6, 10), (9, 4), (5, 5)])
def test_a_cut_is_a_crop_of_testing(size):
    frames = torch.arange(2 * 3 * size[0] * size[1] * 3).remainder(256).to(torch.uint8).view(2, 3, *size, 3)
    wanted = torch.stack([three_crops(clip) for clip in frames], dim=1)
    np.testing.assert_array_equal(torch.stack([cut(frames, place) for place in range(3)]), wanted)
    assert cut(frames, None) is frames


def test_frames_of_all_samplings_are_decoded_once(tmp_path, monkeypatch):
    path, asked, read = write_clip(tmp_path / "a.webm", RED, frames=12), [], views.Video.read
    monkeypatch.setattr(views.Video, "read", lambda video, indices: (asked.append(indices), read(video, indices))[1])
    reader = ProtocolReader("2x3", (2, 4))
    frames, places = reader((Clip("a", path, 0, "", "", ()), 0))
    monkeypatch.undo()
    assert asked == [[0, 1, 3, 4, 6, 7, 9, 10]]
    starts, middles = reader.places(torch.from_numpy(places)[None], 1)
    np.testing.assert_array_equal(frames[starts[0]], read_frames(path, [0, 3, 6, 9]))
    np.testing.assert_array_equal(frames[middles[0]], read_frames(path, [1, 4, 7, 10]))
    np.testing.assert_array_equal(frames[reader.places(torch.from_numpy(places)[None], 0)[1][0]],
                                  read_frames(path, [3, 9]))  # fmt: skip


KNOWN = [{"temperature": 2.0, "clips": 30}, {"temperature": 3.0, "clips": 30}]


def calibrated(monkeypatch, split: str, index: dict):
    run = params.from_values({"evaluation_split": split, "bootstrap_samples": 50})
    monkeypatch.setattr(evaluation, "ground_truth", lambda run: index)
    rng, labels = np.random.default_rng(0), np.arange(80) % 4
    logits = [rng.normal(size=(80, 4)) + 3 * scale * np.eye(4)[labels] for scale in (1, 2)]
    return logits, labels, evaluation.calibrate(run, logits, labels, [str(n) for n in range(80)], KNOWN)


def test_temperatures_are_fitted_on_clips_that_are_not_scored(monkeypatch):
    index = {str(n): {"set": f"s{n // 2}"} for n in range(80)}
    logits, labels, found = calibrated(monkeypatch, "validation", index)
    fitted = np.setdiff1d(np.arange(80), found.rows)
    assert len(fitted) == found.fitted == len(found.rows) == 40
    assert not {n // 2 for n in fitted} & {n // 2 for n in found.rows}  # twins stay together
    assert found.temperatures == [fit_temperature(one[fitted], labels[fitted]) for one in logits]
    for error, divisors in ((found.before, (1, 1)), (found.after, found.temperatures)):
        pairs = zip(logits, divisors, strict=True)
        eces = [metrics(one[found.rows] / t, labels[found.rows])["ece"]["value"] for one, t in pairs]
        assert error["value"] == pytest.approx(np.mean(eces))


def test_test_clips_are_calibrated_by_all_of_validation(monkeypatch):
    logits, labels, found = calibrated(monkeypatch, "test", {})
    assert (found.temperatures, found.fitted, len(found.rows)) == ([2.0, 3.0], 30, 80)
    eces = [metrics(one / t, labels)["ece"]["value"] for one, t in zip(logits, (2, 3), strict=True)]
    assert found.after["value"] == pytest.approx(np.mean(eces))
    with pytest.raises(EvaluationError, match="validation has 1 independent clips"):
        calibrated(monkeypatch, "validation", {str(n): {"set": "one"} for n in range(80)})
