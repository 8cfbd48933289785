"""How a training ends: by a watcher, early, by a fault or a refusal; and what its watchers are told."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from token_task import FUSION, Recorder, run, token_task, tokens

from tcar.fusion.kinds import create_fusion
from tcar.train import alerts, tracking
from tcar.train.checkpoints import Checkpoints
from tcar.train.settings import WatchSettings
from tcar.train.tasks import TokenTask
from tcar.train.tokens import StoredTokens
from tcar.train.trainer import train
from tcar.train.watch import StopTraining, TrainingError


class Stops(Recorder):
    def __init__(self, kind: str, at: int):
        super().__init__()
        self.kind, self.at = kind, at

    def step(self, row):
        super().step(row)
        if self.kind == "step" and row["step"] == self.at:
            raise StopTraining("pruned")

    def epoch(self, row):
        super().epoch(row)
        if self.kind == "epoch" and row["epoch"] == self.at:
            raise StopTraining("pruned")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(token_task(run(epochs=3)), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("kind", "at", "validated"), [("step", 13, 1), ("step", 20, 2), ("epoch", 2, 2)])
def test_a_watcher_ends_it_in_order_and_the_next_start_goes_on(tmp_path, whole, kind, at, validated):
    asked, watcher, after = run(epochs=3), Stops(kind, at), Recorder()
    stopped = train(token_task(asked), tmp_path, [watcher])
    assert (stopped.reason, watcher.ended, len(stopped.history)) == ("pruned", "pruned", validated)
    assert stopped.state_dict
    done = train(token_task(asked), tmp_path, [after])
    assert after.begun["step"] == watcher.steps[-1]["step"]
    assert all(torch.equal(value, whole.state_dict[name]) for name, value in done.state_dict.items())
    assert after.epochs[-1] | {"seconds": 0} == whole.history[-1] | {"seconds": 0}


def test_it_stops_early_where_nothing_becomes_better(tmp_path):
    asked = run(learning_rate=0.0, early_stopping=2, epochs=5)
    found = train(token_task(asked), tmp_path)
    assert (found.reason, len(found.history), found.best_epoch) == ("stopped early", 3, 1)
    again = train(token_task(asked), tmp_path)
    assert (again.reason, again.history) == (found.reason, found.history)


def test_not_a_number_ends_it_with_the_checkpoint_before(tmp_path, monkeypatch):
    asked, recorder = run(checkpoint_steps=4), Recorder()
    task, calls = token_task(asked), []
    train_split, read = task.splits["train"], StoredTokens.read

    def poisoned(self, places, views=0):
        found = read(self, places, views)
        calls.append(self is train_split)
        return tuple((part[0] + np.nan,) for part in found) if sum(calls) == 14 else found

    monkeypatch.setattr(StoredTokens, "read", poisoned)
    monkeypatch.setattr("tcar.train.tokens.THREADS", 1)
    named = r"epoch 2/5, step 14: the gradient's norm is nan, the loss nan; memory: the tokens of clip 1-"
    with pytest.raises(TrainingError, match=named):
        train(task, tmp_path, [*tracking.watchers(WatchSettings(), tmp_path), recorder])
    assert recorder.ended == "not a number" and math.isnan(recorder.steps[-1]["loss"])
    steps, epochs = tracking.read(tmp_path)
    assert (len(steps), len(epochs), [alert.kind for alert in alerts.raised(tmp_path)]) == (14, 1, ["not a number"])
    kept = Checkpoints(tmp_path).newest()
    assert kept.name == "step-000000012"
    assert all(value.isfinite().all() for value in Checkpoints(tmp_path).read(kept).weights.values())


def stored(kept: StoredTokens, **broken: int) -> StoredTokens:
    """The same tokens, those of one clip of a store not finite."""
    for role, place in broken.items():
        store = getattr(kept, role)
        store.root = Path(f"features/{role}")
        store.tokens[place, 1, 2] = np.nan
    return kept


@pytest.mark.parametrize(("split", "role", "place"), [("train", "semantic", 60), ("validation", "motion", 20)])
def test_stored_tokens_that_are_not_finite_are_named_by_store_and_clip(tmp_path, split, role, place):
    asked, kept = run(), {"train": tokens(78, 1), "validation": tokens(21, 2)}
    made = {name: stored(some, **({role: place} if name == split else {})) for name, some in kept.items()}
    named = f"features/{role}: the tokens of clip {kept[split].ids[place]} are not finite; verify the store"
    with pytest.raises(TrainingError, match=f"{named}.*checkpoints before are kept") as caught:
        train(TokenTask(FUSION, made["train"], made["validation"], asked, 0), tmp_path)
    assert "learning_rate" not in str(caught.value)


def test_numbers_that_run_away_are_no_fault_of_the_tokens(tmp_path):
    asked = run(learning_rate=1e30, clip_norm=0.0)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train(token_task(asked), tmp_path)


def test_a_batch_that_does_not_fit_names_what_would_help(tmp_path, monkeypatch):
    asked, recorder = run(), Recorder()
    task = token_task(asked)
    build = task.build

    def greedy(seed):
        model = build(seed)
        model.register_forward_pre_hook(lambda *_: torch.empty(1 << 55))
        return model

    monkeypatch.setattr(task, "build", greedy)
    with pytest.raises(TrainingError) as error:
        train(task, tmp_path, [recorder])
    assert all(word in str(error.value) for word in ("batch_size", "accumulation", "checkpointing", "precision"))
    assert recorder.ended.startswith("failed: ")


def test_other_parameters_are_refused_by_name(tmp_path):
    asked = run(epochs=2)
    train(token_task(asked), tmp_path)
    other = run(epochs=2, learning_rate=0.02, mixup=0.5, batch_size=16)
    with pytest.raises(TrainingError) as error:
        train(token_task(other, train=79), tmp_path)
    for some in ("learning_rate was 0.01, is 0.02", "mixup was 0.0, is 0.5", "batch_size x accumulation", "train was"):
        assert some in str(error.value)
    same = run(epochs=2, batch_size=4, accumulation=2, log_steps=3)
    assert train(token_task(same), tmp_path).reason == "finished"


def test_watchers_learn_what_is_trained(tmp_path):
    asked, recorder = run(epochs=2), Recorder()
    train(token_task(asked), tmp_path, [recorder], {"commit": "abc"})
    count = sum(p.numel() for p in create_fusion(FUSION).parameters())
    assert recorder.begun["trained_parameters"] == count
    assert recorder.begun["commit"] == "abc" and recorder.begun["parameters"]["learning_rate"] == 0.01
    json.dumps(recorder.begun)
    wanted = {"step", "epoch", "loss", "loss/classes", "learning_rate", "gradient_norm", "clips_per_second",
              "data_wait", "memory_mb"}  # fmt: skip
    assert wanted == set(recorder.steps[0])
    assert all(0 <= row["data_wait"] <= 1 and row["clips_per_second"] > 0 for row in recorder.steps)
    means = np.mean([row["gradient_norm"] for row in recorder.steps[:10]])
    assert recorder.epochs[0]["gradient_norm"] == pytest.approx(means)
