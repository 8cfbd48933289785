"""A training that other code has begun does not go on as if nothing had happened."""

import logging

import pytest
import token_task

from tcar.ground import sources
from tcar.lab import results
from tcar.train import tracking, training
from tcar.train.trainer import train
from tcar.train.watch import StopTraining, TrainingError


class Interruption(token_task.Recorder):
    """Asks for the end of a training after its first epoch."""

    def epoch(self, row):
        raise StopTraining("interrupted")


@pytest.fixture
def half(tmp_path):
    """Parameters, task and folder of a training that was interrupted after its first of three epochs."""
    run = token_task.run(epochs=3)
    task = token_task.token_task(run)
    train(task, run, tmp_path, 0, [tracking.CsvTracker(tmp_path), Interruption()], {"commit": "old"})
    return run, task, tmp_path


def test_half_a_training_by_other_code_goes_on_only_where_that_is_asked_for(half, monkeypatch, caplog):
    run, task, folder = half
    monkeypatch.setattr(sources, "code_digest", lambda *modules: "changed")
    with pytest.raises(TrainingError, match=r"half a training by other code: code was .*--other-code"):
        train(task, run, folder, 0)
    done = train(task, run, folder, 0, [tracking.CsvTracker(folder)], {"commit": "new"}, other_code=True)
    assert done.reason == "finished" and len(done.history) == 3
    assert "goes on that was begun by other code" in caplog.text
    assert [part["commit"] for part in results.load(folder / tracking.RUN)["parts"]] == ["old", "new"]


def test_another_torch_is_other_code_too_and_what_is_finished_is_opened_with_a_word(half, monkeypatch, caplog):
    run, task, folder = half
    train(task, run, folder, 0)
    newer = training.code_of(task) | {"torch": "99.0"}
    monkeypatch.setattr(training, "code_of", lambda task: newer)
    caplog.set_level(logging.WARNING)
    assert train(task, run, folder, 0).reason == "finished"
    assert "was trained by other code (torch was" in caplog.text


def test_the_code_of_a_task_counts(half, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "code_digest", lambda *modules: asked.append(modules) or "made")
    training.code_of(half[1])
    assert asked == [("tcar.train.trainer", "tcar.train.tasks")]
