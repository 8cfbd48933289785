"""Other pairs of streams: what each level changes, that nothing is made twice, and comparisons against sums by hand."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats
from test_ablations import scored
from test_report import read_table, run_in, write_results
from token_task import CLASSES, run, tokens
from videos import write_video

from tcar.data.ssv2 import Clip
from tcar.evaluate import Bootstrap, Scoring
from tcar.lab import measured, numerals, params, results
from tcar.lab.paper import apart, report, sentences
from tcar.lab.params import ParameterError
from tcar.lab.steps import pairs, streams, words
from tcar.streams.packaged import packaged

LEVELS = ["seed1", "untrained", "timm:test_vit", "frames:4x8"]


def asked(project, levels=tuple(LEVELS), **changes):
    made = run(
        name="small", workers=1, epochs=2, fusion_width=16, heads=2, ablation_heads=[], bootstrap_samples=20,
        ablation_streams=list(levels), pair_seeds=[5], **changes,
    )  # fmt: skip
    return dataclasses.replace(made, root=project)


@pytest.mark.parametrize(("level", "changed", "untrained"), [
    ("seed1", {f"{role}_checkpoint": str(packaged(name, 1))
               for role, name in (("semantic", "dinov2_tiny"), ("motion", "i3d_tiny"))}, ()),
    ("untrained", {}, ("semantic", "motion")),
    ("timm:test_vit", {"semantic": "timm:test_vit"}, ("semantic",)),
    ("frames:4x8", {"semantic_frames": 4, "motion_frames": 8}, ()),
    ("frames:16x16", {"semantic_frames": 16}, ()),
])  # fmt: skip
def test_a_level_changes_its_streams_and_nothing_else(project, level, changed, untrained):
    base = asked(project, [level])
    own, other = pairs.pairs(base).values()
    assert own == pairs.Pair(base)
    before, after = base.as_dict(), other.run.as_dict()
    assert {key: value for key, value in after.items() if value != before[key]} == changed
    assert other.untrained == untrained and other.run.root == base.root


def test_the_levels_of_the_demo_can_be_measured():
    demo = params.Params()
    assert list(pairs.pairs(demo)) == [pairs.AS_USED, *demo.ablations.ablation_streams]
    assert len(demo.ablations.ablation_streams) == 4


@pytest.mark.parametrize(("values", "said"), [
    ({"ablation_streams": []}, "ablation_streams is empty"),
    ({"ablation_streams": ["seed1"], "motion_checkpoint": "mine.pt"}, "motion is mine.pt: .* leave seed1 out"),
    ({"ablation_streams": ["seed1"], "semantic": "dinov2_vits14"}, "semantic is dinov2_vits14: "),
    ({"ablation_streams": ["timm:test_vitt"]}, "ablation_streams has timm:test_vitt: .* did you mean test_vit"),
    ({"ablation_streams": ["frames:8x16"]}, "frames:8x16, which is what the run itself has"),
    ({"ablation_streams": ["frames:2x16"]}, r"frames:2x16: semantic_grid is \[4, 4, 4\]"),
])  # fmt: skip
def test_a_level_that_cannot_be_is_one_error_before_anything_is_made(project, monkeypatch, values, said):
    monkeypatch.setattr(pairs, "rendered", lambda _: pytest.fail("rendered"))
    with pytest.raises(ParameterError, match=said):
        pairs.build(run(**values))


@pytest.mark.parametrize("level", ["seed2", "frames:4", "frames:0x8", "timm:"])
def test_what_is_no_level_is_refused_when_the_file_is_loaded(project, level):
    with pytest.raises(ParameterError, match="ablation_streams is .*expected seed1, untrained, timm:MODEL or frames:"):
        run(ablation_streams=[level])


@pytest.mark.usefixtures("extraction_inline")
def test_other_streams_have_tokens_of_their_own_from_the_same_clips(project, tmp_path):
    base, paths = asked(project), [write_video(tmp_path / f"{n}.webm", 17, width=64, height=48) for n in range(3)]
    clips = [Clip(path.stem, path, 0, "", "", ()) for path in paths]
    split = {"train": clips[:1], "validation": clips[1:2], "test": clips[2:]}
    found = pairs.tokens_by_level(pairs.pairs(base), split, ["one"])
    assert list(found) == [pairs.AS_USED, *LEVELS]
    for role in streams.ROLES:
        contents = {level: getattr(by_split["train"], role).content for level, by_split in found.items()}
        shared = {"timm:test_vit"} if role == "motion" else set()  # only the semantic stream is another one
        assert len(set(contents.values())) == len(contents) - len(shared)
        assert all(contents[level] == contents[pairs.AS_USED] for level in shared)
    for by_split in found.values():
        assert {name: one.ids for name, one in by_split.items()} == {"train": ["0"], "validation": ["1"], "test": ["2"]}
    grids = {level: [len(xyz) for xyz in one["train"].coordinates.values()] for level, one in found.items()}
    assert len(set(map(tuple, grids.values()))) == 1  # whatever they see, the fusion has as many tokens
    again = pairs.tokens_by_level({"untrained": pairs.pairs(base)["untrained"]}, split, ["one"])
    assert again["untrained"]["train"].digest == found["untrained"]["train"].digest


@pytest.fixture
def drawn(monkeypatch):
    """Random tokens of the same clips for every level in place of those of streams; clips side by side are twins, four
    make a set."""
    def extracted(run, clips, names, untrained):
        scale = 1 + len(run.streams.semantic_checkpoint) + run.streams.semantic_frames / 8
        whole = {split: tokens(count, n) for n, (split, count) in
                 enumerate({"train": 40, "validation": 15, "test": 24}.items())}  # fmt: skip
        return {
            split: dataclasses.replace(one, motion=dataclasses.replace(one.motion, tokens=one.motion.tokens / scale))
            for split, one in whole.items()
        }

    def scoring(run, ids, names):
        places = np.arange(len(ids))
        return Scoring(names, groups=["all"] * len(ids), sets=[f"set-{n // 4}" for n in places], twins=places ^ 1,
                       bootstrap=Bootstrap(20))  # fmt: skip

    monkeypatch.setattr(pairs, "rendered", lambda _: ({}, [str(n) for n in range(CLASSES)]))
    monkeypatch.setattr(pairs, "extracted", extracted)
    monkeypatch.setattr(pairs, "scoring", scoring)


def test_measured_kept_and_not_trained_again(project, drawn, monkeypatch):
    base = asked(project, ["seed1"])
    written = pairs.build(base)
    made = results.load(written)
    assert written == base.results_dir / measured.PAIRS == measured.find(base, measured.PAIRS)
    assert [(row["level"], row["method"]) for row in made["rows"]] == [
        (level, method) for level in (pairs.AS_USED, "seed1")
        for method in ("cross_attention", "late_concat")
    ]  # fmt: skip
    assert len(list((base.run_dir / "trainings").iterdir())) == 2 * 2  # levels, methods
    inputs = results.load(written.with_suffix(".meta.json"))["inputs"]
    assert sum("seed1" in name for name in inputs) == 2 and len(inputs) == 4
    monkeypatch.setattr("tcar.lab.steps.fits.train_together", lambda *_: pytest.fail("trained again"))
    assert results.load(pairs.build(base)) == made
    for changes in ({"ablation_streams": ["untrained"]}, {"pair_seeds": [3]}):
        other = dataclasses.replace(base, ablations=dataclasses.replace(base.ablations, **changes))
        assert measured.find(other, measured.PAIRS) is None
    longer = dataclasses.replace(base, training=dataclasses.replace(base.training, epochs=3))
    assert measured.find(longer, measured.PAIRS) is None


def hand_made() -> dict[tuple[str, str], np.ndarray]:
    """Which of 80 clips each of two seeds names rightly: untrained streams cost both methods nearly all."""
    draw = np.random.default_rng(3)
    shares = {"as used": (0.9, 0.6), "seed1": (0.9, 0.88), "untrained": (0.3, 0.25)}
    return {(level, method): draw.random((2, 80)) < share
            for level, both in shares.items()
            for method, share in zip(("cross_attention", "late_concat"), both, strict=True)}  # fmt: skip


def summed() -> dict:
    made = pairs.summary({name: scored(right) for name, right in hand_made().items()}, "cross_attention")
    about = {"headline": "cross_attention", "rival": "late_concat", "seeds": [0, 1], "split": "test", "alpha": 0.05}
    return json.loads(json.dumps(made | about))


def by_hand(metric: str, name: tuple[str, str]) -> np.ndarray:
    """What each set of four clips reaches, mean over seeds."""
    right = hand_made()[name]
    hits = right if metric == "top1" else right[:, ::2] & right[:, 1::2]
    return hits.mean(axis=0).reshape(20, -1).mean(axis=1)


@pytest.mark.parametrize("metric", ["top1", "twin_accuracy"])
def test_comparisons_are_those_of_sums_by_hand(metric):
    made = summed()
    assert made["metric"] == "twin_accuracy"
    for row in made["rows"]:
        assert row[metric]["value"] == pytest.approx(by_hand(metric, (row["level"], row["method"])).mean())
        assert row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"]
        assert np.mean(row["per_seed"][metric]) == pytest.approx(row[metric]["value"])
    with_own = [row | {"a": (row["level"], row["method"]), "b": ("as used", row["method"])}
                for row in made["comparisons"] if row["metric"] == metric]  # fmt: skip
    with_rival = [row | {"a": (row["level"], "cross_attention"), "b": (row["level"], "late_concat")}
                  for row in made["over_rival"] if row["metric"] == metric]  # fmt: skip
    assert [row["level"] for row in with_own] == ["seed1", "seed1", "untrained", "untrained"]
    assert [row["level"] for row in with_rival] == ["as used", "seed1", "untrained"]
    for family in (with_own, with_rival):
        chances = []
        for row in family:
            a, b = by_hand(metric, row["a"]), by_hand(metric, row["b"])
            assert row["difference"] == pytest.approx((a - b).mean()) and row["low"] <= row["difference"] <= row["high"]
            chances.append(stats.ttest_rel(a, b).pvalue)
        assert [row["p"] for row in family] == pytest.approx(chances)
        order = np.argsort(chances)
        steps = np.maximum.accumulate([chances[n] * (len(order) - k) for k, n in enumerate(order)])
        assert [family[n]["holm"] for n in order] == pytest.approx(np.minimum(steps, 1))


def test_late_concatenation_as_the_headline_is_compared_with_no_rival():
    scores = {(level, method): scored(right) for (level, method), right in hand_made().items()
              if method == "late_concat"}  # fmt: skip
    made = pairs.summary(scores, "late_concat")
    assert made["over_rival"] == [] and [row["level"] for row in made["comparisons"][:2]] == ["seed1", "untrained"]
    about = {"headline": "late_concat", "rival": "late_concat", "alpha": 0.05}
    assert sentences.pairs_told(made | about).startswith("late concatenation is above what it reaches")
    assert "and below it with untrained streams" in sentences.pairs_told(made | about)
    assert len(words.pair_sentences(made | about)) == 1


def test_table_and_sentences_say_what_was_measured():
    made = summed()
    table = apart.pairs_table(made, "synthetic (Tabletop)", "95%")
    assert [row[:2] for row in table.rows[:3]] == [
        ["The run's own streams", "Cross-attention"], ["The run's own streams", "Late concatenation"],
        ["Streams of another training", "Cross-attention"],
    ]  # fmt: skip
    told = [row for row in made["comparisons"] if row["metric"] == "twin_accuracy"]
    change = next(row for row in told if (row["level"], row["method"]) == ("untrained", "cross_attention"))
    assert table.rows[4][4].startswith(f"{100 * change['difference']:+.1f} [")
    assert table.rows[0][4:] == ["", "", "", ""] and table.rows[4][6:] == ["", ""]  # nothing to compare with
    over = next(row for row in made["over_rival"] if row["metric"] == "twin_accuracy")
    assert table.rows[1][6].startswith(f"{100 * over['difference']:+.1f} [")
    assert "synthetic" in table.caption and "2 seed(s)" in table.caption and apart.pairs_table(None, "", "").rows == []
    said = sentences.pairs_told(made)
    assert said.startswith("cross-attention is below what it reaches on the run's own streams with untrained streams (")
    assert "it is above late concatenation with the run's own streams (+" in said
    assert said.count("not told apart from it with the others") == 2 and sentences.pairs_told({}) == ""
    shown = words.pair_sentences(made)
    assert [line.partition("**,")[0] for line in shown] == [
        "**Cross-attention", "**Late concatenation", "**Cross-attention"
    ]  # fmt: skip
    assert "with untrained streams it is below it" in shown[0] and "late concatenation on the same streams" in shown[2]
    assert numerals.pair_name("frames:4x8") == "4 and 8 frames"
    assert numerals.pair_name("timm:vit_tiny") == "an untrained vit_tiny for appearance"


def test_the_paper_shows_what_was_measured_with_its_parameters(project):
    made_for = run_in(project)
    write_results(made_for.results_dir)
    results.save(made_for.results_dir / measured.PAIRS, summed(), params=made_for)
    folder = made_for.run_dir / "paper"
    report.build(made_for, [])
    assert [row["Streams"] for row in read_table(folder / "tables", "pairs")][::2] == [
        "The run's own streams", "Streams of another training", "Untrained streams"
    ]  # fmt: skip
    said = json.loads((folder / "tables" / "numbers.json").read_text())["text"]["pairs"]
    assert said == f"In twin accuracy, {sentences.pairs_told(summed())}."
    other = dataclasses.replace(made_for, trainer=dataclasses.replace(made_for.trainer, mixup=0.5))
    assert "pairs.csv" not in {path.name for path in report.build(other, [])}
