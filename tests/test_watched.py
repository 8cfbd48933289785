"""The watched training: interrupted and resumed without a trace, kept, and told beside fits of its configuration."""

import dataclasses

import pytest
import torch
from token_task import FUSION, run, token_task, tokens

from tcar import results
from tcar.plots import training as figures
from tcar.stages import runs, watched
from tcar.train import tracking
from tcar.train.heads import Fit
from tcar.train.trainer import train

ASKED = {"name": "small", "epochs": 4, "log_steps": 2, "disk_reserve_gb": 0.0}


@pytest.fixture
def asked(project, monkeypatch):
    """A small run, whose headline method is the fusion of the small tokens."""
    monkeypatch.setattr(watched, "fusion_config", lambda _: FUSION)
    return dataclasses.replace(run(**ASKED), root=project)


def both() -> dict:
    return {"train": tokens(78, 1), "validation": tokens(21, 2)}


def test_the_interruption_leaves_no_trace_but_in_what_was_written_down(asked, tmp_path):
    made = watched.watch(asked, both(), 5)
    followed = tracking.watchers(asked.watching, tmp_path / "whole")
    whole = train(token_task(asked, seed=5), asked, tmp_path / "whole", 5, followed)
    assert (made.interrupted, made.trained.reason, made.trained.best_epoch) == (2, "finished", whole.best_epoch)
    assert all(torch.equal(made.trained.state_dict[name], value) for name, value in whole.state_dict.items())
    parts = results.load(made.folder / tracking.RUN)["parts"]
    assert [(part["after_step"], part["reason"]) for part in parts] == [(0, "interrupted"), (20, "finished")]
    # What two equal trainings write down is the same, but for what depends on the machine.
    beside = dataclasses.replace(made, folder=tmp_path / "whole")
    assert made.rows == beside.rows and len(made.rows[0]) == 20 and len(made.rows[1]) == 4
    assert {"seconds", "clips_per_second"} <= watched.machine(made).keys()
    assert not watched.machine(made).keys() & {key for rows in made.rows for row in rows for key in row}


def test_what_is_finished_is_only_opened_and_what_is_of_other_parameters_removed(asked):
    first = watched.watch(asked, both(), 5)
    own, mine = first.folder.parent / "cross_attention-on-tokens-seed0", first.folder.parent / "watched-by-me"
    for folder in (own, mine):
        folder.mkdir()
    before = tracking.read(first.folder)  # with the seconds that each epoch took
    about = (first.folder / tracking.RUN).read_bytes()
    again = watched.watch(asked, both(), 5)
    assert again.folder == first.folder and tracking.read(again.folder) == before
    assert (again.folder / tracking.RUN).read_bytes() == about  # the commit in it is that of the training
    assert again.trained.history == first.trained.history
    changed = dataclasses.replace(asked, training=dataclasses.replace(asked.training, learning_rate=0.02))
    other = watched.watch(changed, both(), 5)
    assert other.folder != first.folder and not first.folder.exists() and own.is_dir() and mine.is_dir()
    (row,) = runs.table(runs.tracked(asked.run_dir / "trainings"))
    assert (row["by"], row["epochs"], row["ended"]) == ("trainer", 4, "finished")
    (other.folder / "notes.txt").write_text("mine")
    watched.watch(asked, both(), 5)
    assert [path.name for path in other.folder.iterdir()] == ["notes.txt"]


def fits(*top1: float) -> list[Fit]:
    return [Fit(FUSION, seed, [{"epoch": 1, "validation_top1": value}], 1, {}, 1.0) for seed, value in enumerate(top1)]


@pytest.mark.parametrize(("others", "word"), [
    ((0.0, 1.0), "within the range"), ((0.0, 0.001), "above the range"), ((0.999, 1.0), "below the range"),
])  # fmt: skip
def test_it_is_told_beside_fits_of_its_configuration(asked, others, word):
    mixed = dataclasses.replace(asked, trainer=dataclasses.replace(asked.trainer, mixup=0.2))
    made = watched.watch(mixed, both(), 5)
    values = watched.record(mixed, made, fits(*others))
    best = made.trained.history[made.trained.best_epoch - 1]
    assert values["validation_top1"] == best["validation_top1"] and values["extras"] == {"mixup": 0.2}
    assert values["side_by_side"] == {"seeds": [0, 1], "validation_top1": list(others)}
    said = watched.sentence(values)
    assert word in said and f"{best['validation_top1']:.1%}" in said and "The trainer also had `mixup` 0.2." in said
    assert "nothing to compare it with" in watched.sentence(watched.record(mixed, made, []))


def test_the_figure_of_what_lasts_has_no_panel_for_the_machine(asked):
    made = watched.watch(asked, both(), 5)
    steps, epochs = made.rows
    labels = [axis.get_ylabel() for axis in figures.watched(steps, epochs, watched.marks(asked, made)).axes]
    assert labels == ["loss", "top-1", "learning rate", "gradient norm"]
    assert [axis.get_ylabel() for axis in figures.watched([], epochs, []).axes] == labels
    live = [axis.get_ylabel() for axis in figures.watched(*tracking.read(made.folder), []).axes]
    assert live[:6] == [*labels, "clips a second", "memory (MB)"]
