"""The model card against the result files, read again by other code."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from real_results import real_run, write_real_results
from test_report import assert_shows, build

from tcar.ground.sources import PACKAGE
from tcar.lab import params
from tcar.lab.paper.card import FILE, model_card
from tcar.lab.params.run import REHEARSAL

PUBLISHED = PACKAGE.parent / "paper" / "results"
DEMO = params.load(PACKAGE.parent / "params" / "demo.yaml")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the published results, in which nothing has been explained yet."""
    copied = tmp_path / "results"
    copied.mkdir()
    for path in PUBLISHED.glob("*.json"):
        if not path.name.startswith("explanations"):
            shutil.copy(path, copied)
    return copied


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(section: str) -> list[list[list[str]]]:
    """The tables of a section as rows of cells, the header first."""
    found = re.findall(r"(?:^\|.*\|\n?)+", section, re.MULTILINE)
    cells = [[[cell.strip() for cell in line[1:-1].split(" | ")] for line in one.strip().splitlines()] for one in found]
    assert all(len(row) == len(rows[0]) for rows in cells for row in rows)
    return [[rows[0], *rows[2:]] for rows in cells]


def named(rows: list[list[str]]) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in rows[1:]}


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def explain(folder: Path, **parts) -> dict[str, str]:
    """The sections of the card beside made-up explanations."""
    (folder / "explanations.json").write_text(json.dumps(parts))
    return sections(model_card(folder, DEMO))


def share(value: float | None, low: float | None = None, high: float | None = None) -> dict:
    return {"value": value, "low": low, "high": high}


def exchange(folder: Path, rows: list[dict], interaction: list[dict] = ()) -> str:
    """What the card says of streams that were exchanged with this outcome."""
    path = folder / "interpretability.json"
    path.write_text(json.dumps({"exchange": rows, "interaction": list(interaction)}))
    return sections(model_card(folder, DEMO))["What it relies on"]


def exchanged(**values) -> dict:
    row = {"group": "bound", "pair": ["Closer", "Away"], "stream": "motion", "clips": 24}
    return row | {"flips": share(0.25, 0.125, 0.5), "moved": share(1.2, 0.9, 1.5), **values}


def test_scores_equal_the_results(folder):
    told, evaluation = sections(model_card(folder, DEMO)), read(folder, "evaluation")
    own = evaluation["methods"]["cross_attention"]
    (metrics,) = tables(told["Metrics"])
    keys = {"Top-1 accuracy": "top1", "Top-5 accuracy": "top5", "Mean accuracy of a class": "mean_class_accuracy",
            "Twin accuracy": "twin_accuracy"}  # fmt: skip
    assert set(named(metrics)) == set(keys)
    for name, (cell,) in named(metrics).items():
        assert_shows(cell, own[keys[name]])
    (groups,) = tables(told["By group"])
    assert {name.lower() for name in named(groups)} == set(own["per_group"])
    for name, (_, top1, twin) in named(groups).items():
        assert_shows(top1, own["per_group"][name.lower()])
        assert_shows(twin, own["per_group_twin_accuracy"][name.lower()])
    for name in ("Metrics", "By group", "Calibration"):
        assert "in % with 95% intervals over twin sets and seeds, on the test clips, synthetic (Tabletop)" in told[name]


def test_calibration_equals_the_results(folder):
    told, evaluation = sections(model_card(folder, DEMO))["Calibration"], read(folder, "evaluation")
    rows = {name: cell for name, (cell,) in named(tables(told)[0]).items()}
    assert_shows(rows["Expected calibration error (ECE)"], evaluation["methods"]["cross_attention"]["ece"])
    assert_shows(rows["ECE after temperature scaling"], evaluation["calibration"]["ece"])
    brier = [float(number) for number in re.findall(r"[\d.]+", rows["Brier score, from 0 to 2 and not in %"])]
    assert brier == pytest.approx([evaluation["brier"][key] for key in ("value", "low", "high")], rel=0.005)
    shown = [float(number) for number in re.findall(r"\d\.\d+", told.rpartition("Temperatures")[2])]
    kept = read(folder, "training")["temperature"]
    assert shown == pytest.approx([*evaluation["calibration"]["temperatures"], kept], rel=0.005)


def test_data_failures_and_cost_equal_the_results(folder):
    told, evaluation = sections(model_card(folder, DEMO)), read(folder, "evaluation")
    clips = {split: int(row[0].replace(",", "")) for split, row in named(tables(told["Data"])[0]).items()}
    assert clips == read(folder, "audit")["clips"]
    classes, pairs = tables(told["Where it fails"])
    values = {name: row["value"] for name, row in evaluation["per_class"].items()}
    assert [values[row[0]] for row in classes[1:]] == sorted(values.values())[:5]
    for name, _, cell in classes[1:]:
        assert_shows(cell, evaluation["per_class"][name])
    largest = evaluation["confused_pairs"][:5]
    assert [row[:3] for row in pairs[1:]] == [[p["true"], p["predicted"], str(p["count"])] for p in largest]
    groups = evaluation["methods"]["cross_attention"]["per_group_twin_accuracy"]
    lowest = min(groups, key=lambda name: groups[name]["value"])
    assert f"The lowest twin accuracy is that of the group *{lowest}*" in told["Where it fails"]
    for row, part in zip(tables(told["Cost"])[0][1:], read(folder, "fusion")["parts"], strict=True):
        assert row[0] == part["part"]
        assert [int(cell.replace(",", "")) for cell in row[1:3]] == [part["total"], part["trained"]]
        assert float(row[3]) == pytest.approx(part["gflops"], rel=0.005)
    timed = read(folder, "miniatures.meta")["extra"]["timings"]["cross_attention"]["milliseconds"]
    assert float(re.search(r"([\d.]+) ms", told["Cost"])[1]) == pytest.approx(timed["p50"], rel=0.005)
    seconds = read(folder, "training.meta")["extra"]["seconds"]["cross_attention"]
    assert float(re.search(r"([\d.]+) hours", told["Cost"])[1]) == pytest.approx(sum(seconds) / 3600, rel=0.5)


def test_synthetic_clips_are_called_so_and_people_are_not_to_be_watched(folder):
    told = sections(model_card(folder, DEMO))
    assert told["Data"].strip().startswith("**The clips are synthetic.**")
    assert "must not be used for it: not for surveillance" in told["Intended use"]


def test_the_same_results_give_the_same_card_with_no_date_and_no_path(folder, tmp_path):
    text = model_card(folder, DEMO)
    there = shutil.copytree(folder, tmp_path / "elsewhere")
    assert model_card(there, DEMO) == text == model_card(folder, DEMO)
    assert str(tmp_path) not in text
    assert str(PACKAGE.parent) not in text
    assert not re.search(r"\b20[2-9]\d\b", text)  # 2019 is that of a publication


@pytest.mark.parametrize(("name", "silent"), [
    ("evaluation", ["Metrics", "By group", "Calibration", "Where it fails"]), ("audit", ["Data"]),
    ("training", ["Model details"]), ("extractors", ["Model details"]), ("miniatures", ["Cost"]),
    ("interpretability", ["What it relies on"]), ("explanations", ["Explanations that can be trusted"]),
])  # fmt: skip
def test_a_missing_file_is_said_to_be_missing_where_its_numbers_would_stand(folder, name, silent):
    for path in folder.glob(f"{name}.*"):
        path.unlink()
    told = sections(model_card(folder, DEMO))
    command = {"explanations": "make explanations", "miniatures": "make miniatures"}.get(name, "make paper")
    message = f"has not been measured: there is no `{name}.json`. `{command}` measures it."
    assert [section for section, text in told.items() if message in text] == silent


def test_nothing_at_all_is_a_card_without_numbers(tmp_path):
    told = sections(model_card(tmp_path, DEMO))
    assert not any(tables(text) for text in told.values())
    assert not re.search(r"\d%|\d\.\d", "".join(text for name, text in told.items() if name != "Model details"))


def test_results_of_an_earlier_training_are_not_shown(folder):
    made = {"inputs": {"runs/demo/results/training.json": "0123456789abcdef"}}
    (folder / "interpretability.meta.json").write_text(json.dumps(made))
    told = exchange(folder, [exchanged()])
    assert "was made from an earlier `training.json`. `make paper` measures it again." in told
    assert "Closer / Away" not in told


def test_what_an_exchanged_stream_does_is_shown_as_measured(folder):
    rows = [exchanged(), exchanged(stream="semantic", flips=share(0.75), moved=share(None), clips=8)]
    header, *shown = tables(exchange(folder, rows))[0]
    assert header == ["Group", "Pair", "Stream exchanged", "Clips", "Answers that flip", "Margin moved"]
    assert shown == [
        ["Bound", "Closer / Away", "motion", "24", "25.0% [12.5%, 50.0%]", "120.0% [90.0%, 150.0%]"],
        ["Bound", "Closer / Away", "semantic", "8", "75.0%", ""],
    ]
    assert "This has not been measured: `interpretability.json` holds nothing of it." in exchange(folder, [])
    left = {"pair": ["Closer", "Away"], "clips": 24, **share(-0.1, -0.2, 0.05)}
    assert tables(exchange(folder, [exchanged()], [left]))[0][1][-1] == "-10.0% [-20.0%, 5.0%]"
    everything = exchanged(pair="all", group=None)
    assert tables(exchange(folder, [everything]))[0][1][:2] == ["All groups", "all"]


def test_explanations_pass_only_where_every_measure_says_so(folder):
    rows = [
        {"method": method, "stream": stream, "measure": measure, "passed": passed}
        for method, stream, measure, passed in [
            ("integrated_gradients", "semantic", "pointing", True),
            ("integrated_gradients", "motion", "pointing", None),
            ("rollout", "semantic", "pointing", True), ("rollout", "motion", "randomised", False),
            ("occlusion", "motion", "pointing", None),
        ]
    ]  # fmt: skip
    told = explain(folder, verdicts=rows)["Explanations that can be trusted"]
    assert "Passed whatever could be judged: integrated gradients. Failed at least once: rollout." in told
    assert "Could not be judged: occlusion." in told
    assert [row[3] for row in tables(told)[0][1:]] == ["yes", "", "yes", "no", ""]


def test_a_card_of_real_videos_says_nothing_of_synthetic_ones(tmp_path):
    run = real_run(tmp_path, seeds=[0, 1], methods=["cross_attention", "late_concat"])
    evaluation = write_real_results(run)["evaluation"]
    text = model_card(run.results_dir, run)
    assert not re.search("synthetic|tabletop|render|twin", text, re.IGNORECASE)
    assert "Something-Something V2" in text
    (metrics,) = tables(sections(text)["Metrics"])
    assert_shows(named(metrics)["Top-1 accuracy"][0], evaluation["methods"]["cross_attention"]["top1"])
    assert "on the validation clips, Something-Something V2" in sections(text)["Metrics"]


def test_an_imitation_is_neither_real_nor_a_result(tmp_path):
    run = real_run(tmp_path, seeds=[0], methods=["cross_attention"], data_root="imitation")
    write_real_results(run)
    run.data_root.mkdir()
    (run.data_root / REHEARSAL).touch()
    data = sections(model_card(run.results_dir, run))["Data"]
    assert "imitation" in data
    assert "the scores in this card mean nothing" in data


def test_the_report_writes_the_card_and_publishes_it_with_the_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("typst.compile", lambda *_, output, **__: output.write_bytes(b"%PDF"))
    run = real_run(tmp_path, seeds=[0], methods=["cross_attention"], publish=False)  # quick: no bill of planned runs
    write_real_results(run)
    text = (build(run).parent / FILE).read_text(encoding="utf-8")
    assert text == model_card(run.results_dir, run)
    assert not (tmp_path / "paper").exists()
    build(dataclasses.replace(run, common=dataclasses.replace(run.common, publish=True)))
    assert (tmp_path / "paper" / FILE).read_text(encoding="utf-8") == text
