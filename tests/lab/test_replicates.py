"""Statistics over replicates against hand-made cases, and that each replicate draws everything anew."""

import json
from dataclasses import replace

import pytest

from tcar.lab import measured, params, results
from tcar.lab.steps import replicates


def scores(replicate: int) -> dict:
    def row(value):
        groups = {"bound": {"top1": value, "twin_accuracy": value / 2}}
        pairs = {"up / down": {"twin_accuracy": value / 4, "emap": value / 8, "train_loss": 0.2}}
        parts = {"per_group": groups, "per_pair": pairs, "per_variant": {"9 movers": {"twin_accuracy": value / 5}}}
        return {"top1": value, "twin_accuracy": value - 0.1, **parts, "epochs": 3, "best_epoch": 2}

    return {"cross_attention": row(0.8 + 0.01 * replicate), "motion": row(0.5 - 0.01 * replicate)}


def test_summary_puts_equal_replicates_against_each_other():
    made = replicates.summary([scores(n) for n in range(4)], "cross_attention", 0.95)
    assert made["methods"]["motion"]["twin_accuracy"]["value"] == pytest.approx(0.385)
    row = next(r for r in made["comparisons"] if r["metric"] == "top1")
    assert (row["a"], row["b"]) == ("cross_attention", "motion")
    assert row["difference"] == pytest.approx(0.33) and row["low"] > 0.25 and row["holm"] == row["p"]
    assert {row["part"]: row["difference"] for row in made["by_part"]} == pytest.approx(
        {"bound": 0.165, "up / down": 0.0825, "9 movers": 0.066})
    pair = made["methods"]["motion"]["per_pair"]["up / down"]
    assert [pair[metric]["value"] for metric in ("emap", "train_loss")] == pytest.approx([0.485 / 8, 0.2])


def test_a_group_without_pairs_is_unknown_and_not_compared():
    rows = [scores(n) for n in range(3)]
    for row in rows:
        for method in row.values():
            method["per_group"]["relation"] = {"top1": 0.5, "twin_accuracy": None}
    made = replicates.summary(rows, "cross_attention", 0.95)
    entry = made["methods"]["motion"]["per_group"]["relation"]
    assert entry["twin_accuracy"]["value"] is None and entry["top1"]["value"] == 0.5
    assert "relation" not in {row["part"] for row in made["by_part"]}


def test_every_replicate_has_its_own_seed_folder_and_streams():
    run = params.Params()
    assert replicates.replicate(run, 0) is run
    drawn = [replicates.replicate(run, number) for number in range(1, 5)]
    assert len({made.common.seed for made in (run, *drawn)}) == len({made.run_dir for made in (run, *drawn)}) == 5
    used = [made.streams.semantic_checkpoint for made in (run, *drawn)]
    assert len(set(used)) == len(replicates.SEEDS) and used[0] == used[len(replicates.SEEDS)] == ""
    assert all(made.training == run.training and made.data == run.data for made in drawn)


def test_trainings_of_all_replicates_have_seeds_of_their_own():
    run = params.from_values({"replicates": 3, "replicate_seeds": 5, "seeds": [2]})
    seeds = [seed for number in range(3) for seed in replicates.head_seeds(run, number)]
    assert len(set(seeds)) == len(seeds) == 15 and replicates.head_seeds(run, 1)[0] == 3


def test_sealed_clips_are_opened_once(tmp_path):
    run = params.from_values({"evaluation_split": "validation", "publish_as": "apart"})
    run = replace(run, root=tmp_path)
    opened = replicates.check_seal(run)
    assert opened.evaluation.evaluation_split == "test" and opened.training == run.training
    results.save(measured.shared(run) / measured.FILE, {"split": "test"}, params=opened)
    assert replicates.check_seal(run) == opened  # the same again gives the same
    other = replace(run, training=replace(run.training, learning_rate=0.1))
    with pytest.raises(params.ParameterError, match="apart/replicates.json: the test clips .* were opened"):
        replicates.check_seal(other)
    with pytest.raises(params.ParameterError, match="no seal"):
        replicates.check_seal(opened)
    with pytest.raises(params.ParameterError, match="apart/replicates.json: its test clips are opened"):
        replicates.build(run)  # which would write validation scores over them
    assert results.load(measured.shared(run) / measured.FILE) == {"split": "test"}


def test_only_results_of_the_same_parameters_are_shown(tmp_path):
    run = replace(params.Params(), root=tmp_path)
    assert measured.find(run) is None
    published = tmp_path / "paper" / "results" / measured.FILE
    published.parent.mkdir(parents=True)
    published.write_text("{}")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"as measured")
    made_from = {"inputs": {weights.name: results.digest(weights)}, "parameters": run.as_dict()}
    published.with_suffix(".meta.json").write_text(json.dumps(made_from))
    assert measured.find(run) == published
    assert measured.find(replace(run, common=replace(run.common, workers=7))) == published
    assert measured.find(replace(run, training=replace(run.training, learning_rate=0.1))) is None
    assert measured.find(replace(run, evaluation=replace(run.evaluation, confidence=0.9))) is None  # of its intervals
    del made_from["parameters"]["token_drop"]  # as if it had been measured before there was such a parameter
    published.with_suffix(".meta.json").write_text(json.dumps(made_from))
    assert measured.find(run) == published
    assert measured.find(replace(run, fusion=replace(run.fusion, token_drop=0.5))) is None
    weights.write_bytes(b"trained again")
    assert measured.find(run) is None


@pytest.mark.parametrize(("stated", "named"), [
    ({"dataset": "ssv2"}, "dataset"),
    ({"semantic": "dinov2_vits14"}, "semantic"),
    ({"motion_checkpoint": "mine.pt"}, "motion_checkpoint"),
    ({"replicate_methods": ["sum", "semantic"]}, "replicate_methods is .*, without cross_attention"),
])
def test_what_cannot_be_drawn_anew_is_refused_by_name(stated, named):
    with pytest.raises(params.ParameterError, match=named):
        replicates.build(params.from_values(stated))
