"""One factor changes at a time, on tokens that are its own; and comparisons with the headline, against sums by hand."""

from dataclasses import replace

import numpy as np
import pytest
from memory_store import in_memory
from stores import write_store

from tcar.evaluate import Bootstrap, Scoring, metrics
from tcar.lab import params
from tcar.lab.steps import ablations, fusion, streams, training
from tcar.lab.steps.ablations import OWN, Scores, Source, Variant, variants
from tcar.lab.steps.words import factor_sentence
from tcar.streams.grids import grid_coordinates

SIZES = {"semantic_width": 6, "motion_width": 5, "num_classes": 3}
ALONE = {"fusion": "kind", "direction": "kind", "streams": "kind", "fusion_blocks": "blocks"}


@pytest.fixture
def run(project):
    return params.from_values({"name": "t", "fusion_width": 16, "heads": 2, "ablation_heads": [4], "batch_size": 4,
                               "ablation_self_blocks": [0, 1], "bootstrap_samples": 200})  # fmt: skip


def tokens(grid: tuple[int, int, int], other: tuple[int, int, int], clips: int = 4):
    draw = np.random.default_rng(0)
    arrays = []
    for cells, width in ((grid, SIZES["semantic_width"]), (other, SIZES["motion_width"])):
        places = grid_coordinates(cells).flatten(0, 1).numpy()
        arrays += [draw.standard_normal((clips, len(places), width), np.float32), places]
    return in_memory(*arrays, labels=[0, 1, 2, 0][:clips], ids=[str(n) for n in range(clips)])


def test_one_factor_changes_at_a_time(run):
    headline, found = fusion.fusion_config(run, **SIZES), variants(run, **SIZES)
    for (factor, level), variant in found.items():
        changed = {name for name, value in vars(variant.fusion).items() if value != vars(headline)[name]}
        if factor.endswith("_grid"):
            role, expected = factor.removesuffix("_grid"), tuple(int(cells) for cells in level.split("x"))
            own = tuple(getattr(run.streams, factor))
            assert not changed
            assert variant.source == (OWN if expected == own else Source(grids=((role, expected),)))
        else:
            name = ALONE.get(factor, factor)
            assert changed <= {name} and str(getattr(variant.fusion, name)) == level and variant.source == OWN


def test_the_headline_has_a_level_of_every_factor_and_a_factor_without_another_is_left_out(run):
    found = variants(run, **SIZES)
    own = [factor for (factor, _), variant in found.items() if variant == ablations.headline_of(found)]
    assert sorted(own) == sorted({factor for factor, _ in found})
    assert [level for factor, level in found if factor == "heads"] == ["2", "4"]
    assert [level for factor, level in found if factor == "self_blocks"] == ["0", "1"]
    assert [level for factor, level in found if factor == "semantic_grid"] == ["4x4x4", "4x2x2"]
    few = replace(run, ablations=replace(run.ablations, ablation_self_blocks=[1], ablation_windows=[]))
    assert not {"self_blocks", "window"} & {factor for factor, _ in variants(few, **SIZES)}


def test_a_coarser_grid_is_of_one_stream_alone(run, tmp_path):
    names = [str(n) for n in range(4)]
    whole = tokens((4, 4, 4), (2, 4, 4))
    store = write_store(tmp_path, whole.semantic.tokens, (4, 4, 4), names)
    whole = replace(whole, semantic=store)
    source = Source(grids=(("semantic", (1, 4, 4)),))
    asked = {("semantic_grid", "1x4x4"): Variant(fusion.fusion_config(run, **SIZES), source)}
    found = ablations.tokens_by_source(asked, {"train": whole})
    assert list(found) == [OWN, source]
    coarse = found[source]["train"]
    (semantic,), (motion,) = coarse.read([1, 3])
    expected = store.load(["1", "3"]).astype(np.float32).reshape(2, 4, 16, -1).mean(1)
    np.testing.assert_allclose(semantic, expected, atol=1e-6)
    np.testing.assert_array_equal(motion, whole.motion.tokens[[1, 3]])
    assert coarse.digest != whole.digest and coarse.labels is whole.labels


def scored(right: np.ndarray) -> Scores:
    """The scores of clips in sets of four, twins side by side, whose class each seed (row) names where `right`."""
    count = right.shape[1]
    labels = np.arange(count) % 2
    known = Scoring(groups=["g"] * count, sets=[f"set-{n // 4}" for n in range(count)],
                    twins=np.where(np.arange(count) ^ 1 < count, np.arange(count) ^ 1, -1),
                    bootstrap=Bootstrap(200))  # fmt: skip
    logits = [np.where(one[:, None] == (np.arange(2) == labels[:, None]), 1.0, 0.0) for one in right]
    return Scores([metrics(one, labels, known) for one in logits], right, known)


def test_comparisons_are_of_the_same_clips_and_corrected_for_the_configurations(run):
    draw = np.random.default_rng(1)
    named = variants(run, **SIZES)
    headline = ablations.headline_of(named)
    asked = {("heads", "2"): headline, ("heads", "4"): named["heads", "4"],
             ("fusion", "late_concat"): named["fusion", "late_concat"], ("fusion", "cross_attention"): headline,
             ("again", "late_concat"): named["fusion", "late_concat"], ("streams", "cross_attention"): headline,
             ("again", "cross_attention"): headline}  # fmt: skip
    right = {headline: draw.random((2, 80)) < 0.9, named["heads", "4"]: draw.random((2, 80)) < 0.9,
             named["fusion", "late_concat"]: draw.random((2, 80)) < 0.4}  # fmt: skip
    scores = {variant: scored(seeds) for variant, seeds in right.items()}
    rows = ablations.comparisons(asked, scores)
    assert [(row["factor"], row["level"], row["against"]) for row in rows if row["metric"] == "top1"] == [
        ("heads", "4", "2"), ("fusion", "late_concat", "cross_attention"), ("again", "late_concat", "cross_attention")
    ]  # fmt: skip
    for row in rows:
        ours, theirs = (np.mean([one if row["metric"] == "top1" else one[::2] & one[1::2] for one in right[variant]])
                        for variant in (asked[row["factor"], row["level"]], headline))  # fmt: skip
        assert row["difference"] == pytest.approx(ours - theirs)
    for metric in ablations.SCORES:
        few, many, again = (row for row in rows if row["metric"] == metric)
        assert many["low"] < many["high"] < 0 and many["p"] < 1e-4
        assert few["low"] < 0 < few["high"] and few["p"] > 0.05
        assert many["holm"] == again["holm"] == pytest.approx(2 * many["p"])  # two configurations, though three names
        assert few["holm"] == few["p"]
    several = [row for row in rows if row["factor"] == "fusion" and row["metric"] == "top1"]
    said = factor_sentence(several, 0.05)
    assert "**Fusion**, against Cross-attention, in top-1 accuracy: Late concatenation is below it" in said


def test_what_is_compared_over_sets_has_the_metric_as_its_mean():
    scores = scored(np.random.default_rng(2).random((3, 39)) < 0.6)  # the last set has fewer clips than the others
    for metric in ablations.SCORES:
        mean = np.mean([one[metric]["value"] for one in scores.metrics])
        assert scores.by_set(metric).mean() == pytest.approx(mean) and len(scores.by_set(metric)) == 10


def test_clips_without_sets_are_compared_one_by_one():
    scores = replace(scored(np.array([[True, False, True]])), known=Scoring())
    np.testing.assert_array_equal(scores.by_set("top1"), [1, 0, 1])
    assert not len(scores.by_set("twin_accuracy"))


def test_what_is_trained_on_other_tokens_is_kept_apart_and_scored_on_them(run, tmp_path, monkeypatch):
    names = [str(n) for n in range(4)]
    drawn = tokens((2, 2, 2), (1, 2, 2))
    opened = [write_store(tmp_path / role, getattr(drawn, role).tokens, grid, names)
              for role, grid in (("semantic", (2, 2, 2)), ("motion", (1, 2, 2)))]  # fmt: skip
    whole = replace(drawn, semantic=opened[0], motion=opened[1])
    off = dict.fromkeys((f"ablation_{factor}" for factor in (
        "heads", "fusions", "directions", "windows", "positions", "fusion_blocks", "self_blocks", "motion_grids",
    )), [])  # fmt: skip
    values = {"name": "t", "fusion_width": 16, "heads": 2, "batch_size": 4, "epochs": 2, "warmup_epochs": 1,
              "workers": 1, "seeds": [0], "semantic_grid": [2, 2, 2], "motion_grid": [1, 2, 2], **off,
              "ablation_semantic_grids": ["1x2x2"], "bootstrap_samples": 10, "ablation_seeds": [0],
              "methods": ["cross_attention"]}  # fmt: skip
    small = params.from_values(values)
    asked = {key: v for key, v in variants(small, **SIZES).items() if key[1] not in streams.ROLES}
    sources = ablations.tokens_by_source(asked, dict.fromkeys(("train", "validation", "test"), whole))
    fits = ablations.fit_variants(small, asked, sources)
    assert len(fits) == 2 and len({done[0].folder for done in fits.values()}) == 2
    monkeypatch.setattr(ablations, "scoring", lambda run, ids: Scoring(bootstrap=Bootstrap(10)))
    scores = ablations.score_variants(small, fits, sources)
    rows = ablations.ablation_rows(asked, fits, scores, sources)
    assert [(row["factor"], row["level"]) for row in rows] == list(asked)
    whole_row, coarse = (next(row for row in rows if row["level"] == level) for level in ("2x2x2", "1x2x2"))
    assert whole_row["trainable_parameters"] == coarse["trainable_parameters"]
    assert coarse["gflops"] < whole_row["gflops"]
    told = ablations.summary(asked, scores)
    assert [row["headline"] for row in told] == [True, False, True]
    # `tcar train` does the same trainings, and so finds them done
    monkeypatch.setattr(training, "tokens_of", lambda run, *splits: dict.fromkeys(splits, whole))
    own, saved = asked["streams", "cross_attention"], []
    monkeypatch.setattr(training, "method_configs", lambda run: {"cross_attention": own.fusion})
    monkeypatch.setattr(training, "variants", lambda run: asked)
    monkeypatch.setattr(training, "save_fit", lambda run, fit, folder: saved.append(folder))
    again = [fit.folder for _, fit in training.all_trainings(small, False)]
    assert {done[0].folder for done in fits.values()} == set(again)
    assert set(saved) == {fits[own][0].folder / "model"}  # a model of the whole run is that of its own tokens alone
