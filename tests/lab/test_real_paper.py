"""The paper of a run on 174 classes: each sentence is true of that run, or is not there."""

import csv
import json
import re

import pytest
import typst
from real_results import CLIPS, real_run, write_real_results
from test_report import draw_figure

from tcar.ground.sources import PACKAGE
from tcar.lab import params
from tcar.lab.paper import explained, report, sentences

# What is true of Tabletop, of its small streams or of a finished training only.
FOREIGN = re.compile(r"twin|synthetic|small networks|miniature|stand-in|renderer|held-out|Ceilings|leak|plateau", re.I)


def said(parts) -> str:
    """The text of elements as `typst.query` gives them."""
    if isinstance(parts, list):
        return "".join(map(said, parts))
    own = " " if parts.get("func") == "space" else parts.get("text", "")
    inside = (parts[key] for key in ("body", "children", "child") if isinstance(parts.get(key), (dict, list)))
    return (own if isinstance(own, str) else "") + "".join(map(said, inside))


# Figures that only clips with a ground truth have.
SYNTHETIC = ("twins", "ceilings", "twin_probes", "per_group", "concepts", "controls", "replicates", "loss_terms",
             "exchanged", "explanation_scores")  # fmt: skip


def paper(run: params.Params) -> str:
    """Build the paper of results that lie there, and give its text with headings and captions."""
    for name in report.FIGURES:
        if name not in SYNTHETIC and not name.startswith("experiment"):
            draw_figure(run.figures_dir / f"{name}.pdf")
    report.build(run, run.figures_dir.glob("*"))
    folder = run.run_dir / "paper"
    options = {"root": folder, "sys_inputs": {"figures": "figures"}, "ignore_system_fonts": True}
    kinds = ("heading", "par", "figure.caption")
    found = (json.loads(typst.query(folder / "tcar.typ", kind, **options)) for kind in kinds)
    return "\n".join(said(element) for elements in found for element in elements)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> tuple[params.Params, str]:
    run = real_run(tmp_path_factory.mktemp("real"), seeds=[0, 1], methods=["cross_attention", "late_concat"])
    write_real_results(run)
    return run, paper(run)


def test_nothing_of_tabletop_is_said_of_real_videos(real):
    text = real[1]
    assert not FOREIGN.search(text), FOREIGN.search(text)
    assert "Tabletop" not in text
    assert "render" not in text
    assert f"On {CLIPS} validation clips of 174 classes, Something-Something V2" in text
    assert "dinov2_vits14" in (real[0].run_dir / "paper" / "tables" / "streams.csv").read_text()
    assert "The epoch that is kept was chosen on the clips that are reported." in text
    assert "six moments of one training clip of each of 48 classes" in text
    assert "pairs of classes that temporal cross-attention confuses most on validation" in text
    assert "the wiring fixes the share of each stream of attention rollout" in text
    assert "1.0% by the readout" in text and "of 64 clips, on average from 50.0% [37.5, 62.5] of the clip." in text


def test_a_training_of_four_epochs_is_not_said_to_have_converged(real):
    assert "The trainings are too short to tell whether any method has converged." in real[1]
    assert real[1].count("converge") == 1


def test_every_table_has_rows_and_every_column_a_value(real):
    tables = real[0].run_dir / "paper" / "tables"
    captions = json.loads((tables / "numbers.json").read_text())["captions"]
    assert sorted(captions) == sorted(path.stem for path in tables.glob("*.csv"))
    assert {"methods", "protocol", "comparisons", "published"} <= set(captions)
    assert not {"per_group", "ceilings", "leaks", "exchange", "explanations", "full_size"} & set(captions)
    for path in tables.glob("*.csv"):
        header, *rows = csv.reader(path.open(encoding="utf-8"))
        assert rows, path.name
        assert all(any(column) for column in zip(*rows, strict=True)), (path.name, header)
    assert "Twin accuracy" not in (tables / "ablations.csv").read_text()


def test_the_protocol_stands_beside_published_results(real):
    run, text = real
    rows = list(csv.DictReader((run.run_dir / "paper" / "tables" / "protocol.csv").open(encoding="utf-8")))
    assert [row["Views"] for row in rows] == ["1", "1", "2 × 3", "2 × 3"]
    protocol = json.loads((run.results_dir / "evaluation.json").read_text())["protocol"]
    assert [float(row["Top-1"].split()[0]) for row in rows] == [
        pytest.approx(100 * row["top1"]["value"], abs=0.0501) for row in protocol
    ]
    assert "Beside published results" in text
    assert "What it takes on the real dataset" not in text


def test_a_rehearsal_says_that_it_is_none_of_the_real_dataset(tmp_path):
    run = real_run(tmp_path, seeds=[0], methods=["cross_attention"])
    run.data_root.mkdir(parents=True)
    (run.data_root / params.REHEARSAL).write_text("{}")
    write_real_results(run, epochs=20, split="test", gain=-1.0)
    text = paper(run)
    assert "174 classes, a rendered imitation of Something-Something V2, temporal cross-attention" in text
    assert "with random weights" in text
    assert "nothing of this run can be compared with it" in text
    assert "of one seed" in text
    assert "over seeds" not in text and "and seeds" not in text
    assert "1 cannot be told from chance, of which it says nothing" in text
    assert not re.search(r"twin|Tabletop|small networks|validation clips of 174", text)
    for caption in json.loads((run.run_dir / "paper/tables/numbers.json").read_text())["captions"].values():
        assert "Something-Something V2" not in caption.replace("imitation of Something-Something V2", "") or (
            caption.startswith("Published results")
        )


@pytest.mark.parametrize(("epochs", "gain", "words"), [
    (20, 6.0, "2 of 2 methods count as converged"), (7, 6.0, ""), (20, -1.0, "2 cannot be told from chance"),
])
def test_a_plateau_needs_time_and_something_that_was_learned(tmp_path, epochs, gain, words):
    run = real_run(tmp_path, seeds=[0], methods=["cross_attention", "motion"])
    results = write_real_results(run, epochs=epochs, gain=gain)
    assert sentences.plateaus(results).startswith(words)
    assert bool(words) == bool(sentences.plateaus(results))


def test_a_difference_that_is_shown_as_none_is_not_said_to_be_one():
    gain = {"value": -0.0005, "low": -0.0007, "high": -0.0003}
    judged = {"binding": [{"stream": "motion", "method": "rollout", "difference": gain}]}
    assert "not told apart from it by attention rollout" in explained.binding_sentence(judged)


def test_the_published_paper_is_of_tabletop():
    numbers = json.loads((PACKAGE.parent / "paper/tables/numbers.json").read_text())
    assert "synthetic (Tabletop)" in numbers["captions"]["methods"]
