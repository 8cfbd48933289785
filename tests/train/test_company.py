"""Trainings in one pass: each learns what it learns alone, wherever it is cut off, and is kept for whoever asks."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from token_task import FUSION, Kills, Recorder, run, tokens

from tcar.ground import sources
from tcar.lab import results
from tcar.lab.steps import fits as trainings
from tcar.lab.steps import methods, training
from tcar.lab.steps.fits import Job, fit_all, fit_jobs, folder_of
from tcar.train import tracking
from tcar.train.checkpoints import Checkpoints
from tcar.train.recipe import converged, improvement
from tcar.train.tasks import TokenTask
from tcar.train.tokens import StoredTokens
from tcar.train.trainer import train, train_together
from tcar.train.training import Member
from tcar.train.watch import StopTraining, TrainingError

# All that a head has of its own: kind, size, what is drawn at random; and what all have: mixing, averaged weights.
KINDS = {
    "cross_attention": replace(FUSION, dropout=0.1, drop_path=0.1, token_drop=0.2),
    "late_concat": replace(FUSION, kind="late_concat", dropout=0.2),
    "motion": replace(FUSION, kind="motion"),
}
ASKED = {"epochs": 3, "epochs_by_method": {"motion": 4}, "mixup": 0.5, "weight_averaging": 0.9, "checkpoint_steps": 3}


def splits() -> dict:
    return {"train": tokens(78, 1), "validation": tokens(21, 2)}


def heads(root: Path, asked, given: dict, kinds=tuple(KINDS), watchers: dict | None = None) -> list[Member]:
    return [
        Member(TokenTask(KINDS[kind], given["train"], given["validation"], asked, 3), root / kind,
             (watchers or {}).get(kind, ()))
        for kind in kinds
    ]  # fmt: skip


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def learned(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """Every head trained by itself."""
    asked, root = run(**ASKED), tmp_path_factory.mktemp("alone")
    return {kind: train(heads(root, asked, splits(), [kind])[0].task, root / kind) for kind in KINDS}


def test_a_head_in_company_equals_the_head_alone_bit_for_bit(alone, tmp_path):
    recorder = Recorder()
    made = train_together(heads(tmp_path, run(**ASKED), splits(), watchers={"motion": [recorder]}))
    for kind, found in zip(KINDS, made, strict=True):
        assert same(found.state_dict, alone[kind].state_dict), kind
        assert learned(found.history) == learned(alone[kind].history) and found.reason == "finished"
    assert [len(found.history) for found in made] == [3, 3, 4]
    assert recorder.epochs == made[2].history and recorder.ended == "finished"


def test_each_batch_is_read_once_for_all(tmp_path, monkeypatch):
    given, counted, plain = splits(), [], StoredTokens.read

    def read(self, places, views=0):
        counted.append(len(places))
        return plain(self, places, views)

    monkeypatch.setattr(StoredTokens, "read", read)
    train_together(heads(tmp_path, run(epochs=2), given))
    assert sum(counted) == 2 * (78 + 21)


@pytest.mark.parametrize("at", [5, 20])
def test_killed_at_any_step_and_started_again_it_ends_the_same(alone, tmp_path, at):
    """Heads are then at checkpoints of different steps: those that are further wait."""
    child = os.fork()
    if not child:
        try:
            kills = {"late_concat": [Kills(at)]}
            train_together(heads(tmp_path, run(**ASKED), splits(), watchers=kills))
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    for found, kind in zip(train_together(heads(tmp_path, run(**ASKED), splits())), KINDS, strict=True):
        assert same(found.state_dict, alone[kind].state_dict), kind


def test_one_that_joins_later_or_is_done_already_changes_nothing_for_the_others(alone, tmp_path):
    asked, given = run(**ASKED), splits()
    train_together(heads(tmp_path, asked, given, ["motion"]))
    for found, kind in zip(train_together(heads(tmp_path, asked, given)), KINDS, strict=True):
        assert same(found.state_dict, alone[kind].state_dict), kind


class Stops(Recorder):
    def step(self, row):
        if row["step"] == 13:
            raise StopTraining("interrupted")


def test_one_that_is_stopped_leaves_the_others_to_their_end_and_goes_on_later(alone, tmp_path):
    asked, given = run(**ASKED), splits()
    made = train_together(heads(tmp_path, asked, given, watchers={"cross_attention": [Stops()]}))
    assert [found.reason for found in made] == ["interrupted", "finished", "finished"]
    assert same(made[1].state_dict, alone["late_concat"].state_dict)
    again = train_together(heads(tmp_path, asked, given))
    assert same(again[0].state_dict, alone["cross_attention"].state_dict)


def test_one_whose_loss_is_no_number_is_named_after_the_others_have_ended(alone, tmp_path):
    given, ours = splits(), run(**ASKED)
    wild = run(**ASKED | {"learning_rate": 1e30, "clip_norm": 0.0})
    company = heads(tmp_path, ours, given)
    company[0] = Member(TokenTask(KINDS["cross_attention"], given["train"], given["validation"], wild, 3),
                      tmp_path / "wild")  # fmt: skip
    with pytest.raises(TrainingError, match="cross_attention, seed 3, .*lower learning_rate"):
        train_together(company)
    for kind in ("late_concat", "motion"):
        store = Checkpoints(tmp_path / kind)
        assert store.state()["ended"] == "finished"
        assert same(store.read_best(alone[kind].best_epoch), alone[kind].state_dict)


def test_what_cannot_share_batches_is_refused(tmp_path):
    given, asked = splits(), run(**ASKED)
    first, second, _ = heads(tmp_path, asked, given)
    others = {
        "batches": heads(tmp_path, run(**ASKED | {"batch_size": 6}), given)[1],
        "clips": heads(tmp_path, asked, splits())[1],
    }
    for other in others.values():
        with pytest.raises(TrainingError, match="cannot be trained in one pass"):
            train_together([first, other])
    assert second.folder.exists() is False


# --- those of a run


@pytest.fixture
def asked(project):
    return replace(run(**ASKED, name="small", workers=2), root=project)


def test_a_run_keeps_what_it_trains_and_two_workers_give_what_one_gives(asked, alone):
    given, told = splits(), []

    class Told(Recorder):
        def epoch(self, row):
            told.append(row["epoch"])

    fits = fit_all(asked, KINDS, [3, 4], given, lambda folder: Told())
    assert told == [1, 2, 3]
    assert [(kind, fit.seed) for kind, done in fits.items() for fit in done] == [
        (kind, seed) for kind in KINDS for seed in (3, 4)
    ]
    for kind, (fit, other) in fits.items():
        assert same(fit.trained, alone[kind].state_dict) and not same(other.trained, fit.trained)
        assert learned(fit.history) == learned(alone[kind].history) and fit.seconds > 0
        assert fit.calibration["fitted_on"] == "validation"
    one = replace(asked, common=replace(asked.common, workers=1, name="one"))
    for kind, (fit,) in fit_all(one, KINDS, [4], given).items():
        assert same(fit.trained, fits[kind][1].trained) and fit.folder.name == fits[kind][1].folder.name
    rows = training.table(training.tracked(asked.run_dir / "trainings"))
    assert len(rows) == 6 and {row["ended"] for row in rows} == {"finished"}


def test_what_is_kept_is_opened_and_not_trained_again(asked, monkeypatch):
    given = splits()
    fits = fit_all(asked, KINDS, [3], given)
    monkeypatch.setattr(trainings, "train_together", lambda *_: pytest.fail("trained again"))
    wider = replace(asked, training=replace(asked.training, seeds=[9], methods=["motion", "cross_attention"]))
    again = fit_all(wider, dict(reversed(KINDS.items())), [3], splits())
    assert {kind: done[0].folder for kind, done in again.items()} == {k: done[0].folder for k, done in fits.items()}
    record = training.training_record(asked, fits)
    results.save(asked.results_dir / "training.json", record, params=asked,
                 extra={"trainings": training.places(fits)})  # fmt: skip
    assert methods.trained(asked) == {kind: [replace(fit) for fit in done] for kind, done in fits.items()}
    assert not any("seconds" in row for made in record["methods"].values() for row in made["curves"][3])
    for best in (asked.run_dir / "trainings").glob("motion-*/best-*/weights.safetensors"):
        best.write_bytes(best.read_bytes()[:-8])
    with pytest.raises(TrainingError, match="remove .* and train again"):
        methods.trained(asked)["motion"][0].state_dict  # noqa: B018


def test_whatever_changes_the_result_changes_the_folder_and_nothing_else_does(asked, monkeypatch):
    given = splits()

    def folder(run=asked, fusion=FUSION, seed=3, given=given) -> Path:
        return folder_of(asked.run_dir, Job(run, fusion, seed), given)

    def changed(stage: str, **values):
        return replace(asked, **{stage: replace(getattr(asked, stage), **values)})

    labels = given["validation"].labels[::-1].copy()
    others = [
        folder(changed("training", weight_decay=0.1)), folder(changed("training", epochs=7)), folder(seed=5),
        folder(changed("training", batch_size=4)), folder(changed("trainer", accumulation=2)),
        folder(changed("trainer", mixup=0.1)), folder(fusion=replace(FUSION, dropout=0.2)),
        folder(given=given | {"train": tokens(78, 3)}),
        folder(given=given | {"validation": replace(given["validation"], labels=labels)}),
    ]  # fmt: skip
    equal = [
        folder(), folder(given=splits()), folder(changed("trainer", log_steps=3, compiled=True)),
        folder(replace(changed("trainer", accumulation=2), training=replace(asked.training, batch_size=4))),
        folder(changed("common", workers=1, name="other")), folder(changed("training", epochs_by_method={"sum": 9})),
    ]  # fmt: skip
    assert len({*others, equal[0]}) == len(others) + 1 and len(set(equal)) == 1
    monkeypatch.setattr(sources, "code_digest", lambda *_: "changed")
    assert folder() not in {*others, *equal}


def test_what_other_code_has_made_stays_and_is_taken_only_where_that_is_asked_for(asked, monkeypatch, caplog):
    given, job = splits(), Job(asked, KINDS["motion"], 3)
    (before,) = fit_jobs([job], given, asked.run_dir)
    monkeypatch.setattr(sources, "code_digest", lambda *_: "changed")
    assert folder_of(asked.run_dir, job, given) != before.folder
    assert "was trained by other code, and stays" in caplog.text
    assert folder_of(asked.run_dir, job, given, other_code=True) == before.folder


def test_a_training_that_fails_in_a_worker_is_named(asked):
    wild = replace(asked, training=replace(asked.training, learning_rate=1e30, clip_norm=0.0))
    with pytest.raises(TrainingError, match=r"seed 3, epoch \d/\d, step \d+: the gradient's norm"):
        fit_all(wild, KINDS, [3], splits())


def test_scores_are_those_of_each_model_by_itself(asked):
    given, test = splits(), tokens(30, 5)
    fits = fit_all(asked, KINDS, [3], given) | {"again": fit_all(asked, {"x": KINDS["motion"]}, [3], given)["x"]}
    for kind, (logits,) in methods.scored(asked, fits, test).items():
        (fit,) = fits[kind]
        model = methods.create_fusion(fit.fusion)
        model.load_state_dict(fit.state_dict)
        with torch.no_grad():
            wanted = torch.cat([model.eval()(*test.floats([place])) for place in range(30)])
        np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-5)


def test_the_table_and_the_figure_of_a_training_hold_what_was_written_down(asked):
    (fit,) = fit_all(asked, {"x": FUSION}, [3], splits())["x"]
    steps, epochs = training.rows(fit.folder)
    assert epochs == learned(tracking.read(fit.folder)[1]) and not steps[0].keys() & training.MACHINE
    assert training.machine(fit.folder)["seconds"] == pytest.approx(fit.seconds, rel=1e-6)
    assert training.marks(asked, fit.folder) == []


def test_plateaus_are_told_from_rises():
    def history(values):
        return [{"validation_top1": float(v)} for v in values]

    rise, wave = np.linspace(0, 0.8, 40), 0.02 * np.sin(np.arange(40))
    flat = np.minimum(np.linspace(0, 2, 40), 0.8)
    assert not converged(history(rise + wave))
    assert converged(history(flat + wave))
    assert improvement(history(rise)) == pytest.approx(10 * 0.8 / 39)
    assert improvement(history(rise), window=20) == pytest.approx(20 * 0.8 / 39)
    assert converged(history(rise), threshold=0.5)
    assert not converged(history([0.5])), "too short to tell"


def test_a_split_is_read_whole_batch_by_batch():
    given = tokens(6, 4)
    read = list(given.batches(4))
    assert [places for places, _ in read] == [[0, 1, 2, 3], [4, 5]]
    whole = [torch.cat([parts[role][0] for _, parts in read]) for role in (0, 1)]
    assert torch.equal(whole[0], torch.from_numpy(given.semantic.tokens))
    assert torch.equal(whole[1], torch.from_numpy(given.motion.tokens))
