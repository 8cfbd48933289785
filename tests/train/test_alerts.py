"""Every alert fires for a provoked fault and for nothing else; healthy trainings, synthetic and real, raise none."""

import dataclasses
import json
import math
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch
from curves import EPOCHS, STEPS, changed, healthy
from token_task import run as small_run
from token_task import token_task

from tcar.lab.params import ParameterError
from tcar.train import alert_rules, alerts, tracking
from tcar.train.alerts import Alarm, Alert, Webhook
from tcar.train.checkpoints import Checkpoints
from tcar.train.settings import WatchSettings
from tcar.train.trainer import train
from tcar.train.watch import StopTraining, TrainingError

AFTER = 12 * STEPS  # of the faults: the training is well under way
SOME = Alert("x", "plateau", "no better in 10 epochs", 7, 1.5)
nan = float("nan")


@pytest.fixture(autouse=True)
def disk(monkeypatch):
    """A disk with room, whatever the machine has; a test may fill it."""
    usage = SimpleNamespace(free=1e15)
    monkeypatch.setattr(alert_rules.shutil, "disk_usage", lambda folder: usage)
    return usage


def followed(rows, folder, limits=None, **options) -> list[Alert]:
    """What an alarm raises over the rows of a training, up to where it stops it."""
    alarm = Alarm(limits or WatchSettings(), folder, **options)
    alarm.start({"name": "x", "trained_parameters": 1000, "step": 0})
    reason = "finished"
    try:
        for kind, row in rows:
            getattr(alarm, kind)(row)
    except StopTraining as stop:
        reason = stop.reason
    alarm.end(reason)
    assert reason == ("not a number" if any(alert.fatal for alert in alerts.raised(folder)) else "finished")
    return alerts.raised(folder)


FAULTS = {
    "not a number": {"loss": lambda value, since: nan},
    "divergence": {"loss": lambda value, since: value + since / 20},
    "gradient explosion": {"gradient_norm": lambda value, since: 100 * value},
    "plateau": {"validation_top1": lambda value, since: 0.4, "validation_loss": lambda value, since: 2.0},
    "overfitting": {
        "train_top1": lambda value, since: 0.99,
        "validation_top1": lambda value, since: 0.6 * value,
        "validation_loss": lambda value, since: value * (1 + since / 400),
    },
}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fault_raises_its_alert_once_and_no_other(tmp_path, kind, seed):
    found = followed(changed(seed, AFTER, **FAULTS[kind]), tmp_path)
    first = found[0]
    assert first.kind == kind and first.step > AFTER and first.run == "x" and first.message
    # Within two windows of steps, or a dozen epochs: in time to save what is left of the training.
    assert first.step <= AFTER + (100 if first.epoch % 1 else 12 * STEPS)
    # A validation that gets worse is, after so many epochs, on a plateau as well.
    late = {"plateau"} if kind == "overfitting" else set()
    assert Counter(alert.kind for alert in found)[kind] == 1 and {alert.kind for alert in found} <= {kind} | late
    assert first.fatal == (kind == "not a number") == (found[-1].step == AFTER + 1)


@pytest.mark.parametrize("key", ["gradient_norm", "loss/contrastive", "validation_loss"])
def test_every_number_that_the_weights_hang_on_is_watched(tmp_path, key):
    rows = [(kind, {**row, "loss/contrastive": 1.0} if kind == "step" else row) for kind, row in healthy(0, 2)]
    kind, row = next((kind, row) for kind, row in rows[60:] if key in row)
    row[key] = math.inf
    (found,) = followed(rows, tmp_path)
    assert found.kind == "not a number" and found.step == row["step"] and f"{key} is inf" in found.message


def test_a_curve_that_the_schedule_flattens_is_no_plateau(tmp_path):
    """The learning rate is below a quarter of its highest from epoch 29 on; training at full rate ends in an alert."""
    late, values = 28 * STEPS, {"validation_top1": 0.6, "validation_loss": 1.0, "train_top1": 0.7}
    flat = {key: lambda _, since, fixed=fixed: fixed for key, fixed in values.items()}
    assert followed(changed(0, late, **flat), tmp_path / "cosine") == []
    constant = {**flat, "learning_rate": lambda value, since: 1e-3}
    assert [alert.kind for alert in followed(changed(0, late, **constant), tmp_path / "constant")] == ["plateau"]


def test_a_disk_that_fills_up_is_told_before_it_is_full_and_again_once_there_was_room(tmp_path, disk):
    limits, rows = WatchSettings(disk_reserve_gb=2.0), list(healthy(0, 1))
    alarm = Alarm(limits, tmp_path)
    alarm.start({"name": "x", "trained_parameters": 1000})
    for (_, row), free in zip(rows, [9e9, 2.1e9, 1.9e9, 1.8e9, 2.1e9, 1.9e9, 3e9, 1e9], strict=False):
        disk.free = free
        alarm.step(row)
    # 2.1 GB are too little to take it back: files that grow would set it off with every step.
    found = alerts.raised(tmp_path)
    assert [(alert.kind, alert.step) for alert in found] == [("disk nearly full", 3), ("disk nearly full", 8)]
    assert "1.9 GB" in found[0].message


def test_the_reserve_is_two_checkpoints_where_those_are_larger(tmp_path, disk):
    alarm, (_, row) = Alarm(WatchSettings(disk_reserve_gb=0.001), tmp_path), next(healthy(0, 1))
    trained = 10_000_000  # a checkpoint: 160 MB
    disk.free = 310e6
    for parameters, told in ((trained // 2, 0), (trained, 1)):
        alarm.start({"name": "x", "trained_parameters": parameters})
        alarm.step(row)
        assert len(alerts.raised(tmp_path)) == told


def test_none_fires_in_healthy_synthetic_trainings(tmp_path):
    for seed in range(15):
        found = followed(healthy(seed, epochs=(5, 14, EPOCHS)[seed % 3]), tmp_path / str(seed))
        assert not found, (seed, found)


class Kept:
    """A watcher that keeps the rows."""

    def __init__(self):
        self.rows, self.reason = [], ""

    def start(self, run):
        self.run = run

    def step(self, row):
        self.rows.append(("step", row))

    def epoch(self, row):
        self.rows.append(("epoch", row))

    def end(self, reason):
        self.reason = reason


def test_none_fires_in_a_real_training(tmp_path):
    kept, asked = Kept(), small_run(epochs=10, learning_rate=0.003, weight_decay=0.2, batch_size=16)
    train(token_task(asked, 120, 30), tmp_path / "x", [kept, Alarm(WatchSettings(), tmp_path)])
    assert Counter(kind for kind, _ in kept.rows) == {"step": 80, "epoch": 10} and kept.reason == "finished"
    assert alerts.raised(tmp_path) == []
    # The same rows with a fault put into them do raise one: it is not for want of looking.
    for _, row in kept.rows[70:]:
        row |= {"gradient_norm": 1e3 * row["gradient_norm"]}
    assert [alert.kind for alert in followed(kept.rows, tmp_path / "again")] == ["gradient explosion"]


def spoilt(batch) -> tuple:
    """The tokens of a batch, those of the semantic stream not finite."""
    (semantic,), motion = batch.inputs
    return (semantic * nan,), motion


def test_not_a_number_in_validation_alone_ends_it_too_and_leaves_what_was_good(tmp_path):
    """Finite weights and a validation clip that is not, in the third epoch of four, which a first look may take for
    the best: it must become neither the best nor the last checkpoint, with an alarm or without."""
    asked = small_run(epochs=4, warmup_epochs=1, batch_size=16)
    for name, watched in (("alarm", True), ("bare", False)):
        task, folder, kept = token_task(asked), tmp_path / name, Kept()
        read, validations = task.batches, []

        def poisoned(split, slices, epoch, broken, read=read, validations=validations):
            validations += [split] if split == "validation" else []
            for batch in read(split, slices, epoch, broken):
                yield dataclasses.replace(batch, inputs=spoilt(batch)) if len(validations) == 3 else batch

        task.batches = poisoned
        following = [*(tracking.watchers(WatchSettings(), folder) if watched else ()), kept]
        with pytest.raises(TrainingError, match=r"epoch 3/4: the validation loss is nan, that of training \d"):
            train(task, folder, following)
        assert kept.reason == "not a number" and math.isnan(kept.rows[-1][1]["validation_loss"])
        if watched:
            (alert,) = alerts.raised(folder)
            assert (alert.kind, alert.epoch, alert.fatal) == ("not a number", 3, True)
        checkpoints = Checkpoints(folder)
        last = checkpoints.read(checkpoints.newest())
        assert last.state["step"] == 10 and [row["epoch"] for row in last.state["history"]] == [1, 2]
        assert all(torch.isfinite(value).all() for value in last.weights.values())
        best = last.state["best_epoch"]
        assert best in (1, 2) and checkpoints.read_best_row(best)["validation_top1"] == max(
            row["validation_top1"] for row in last.state["history"]
        )
        assert not (folder / "best-00003").exists()
    # With sound clips it goes on from there to the end.
    again, whole = (train(token_task(asked), tmp_path / name) for name in ("alarm", "whole"))
    assert again.reason == "finished"
    assert all(torch.equal(value, again.state_dict[key]) for key, value in whole.state_dict.items())


def test_a_gradient_that_overflows_in_fp16_is_how_the_scale_is_found_until_there_is_none(tmp_path):
    for scale, told in ((1.0, []), (1e-4, ["not a number"])):
        rows = [(kind, row | ({"loss_scale": scale, "gradient_norm": math.inf} if kind == "step" else {}))
                for kind, row in healthy(0, 2)]  # fmt: skip
        assert [alert.kind for alert in followed(rows, tmp_path / str(scale))] == told


def test_a_resumed_training_is_judged_like_one_that_went_on(tmp_path):
    """Killed within a plateau, three times: each part alone is too short to see it."""
    rows = list(changed(3, AFTER, **FAULTS["plateau"]))
    whole = followed(rows, tmp_path / "whole")
    folder, parts = tmp_path / "parts", [15 * STEPS, 18 * STEPS, 20 * STEPS, EPOCHS * STEPS]
    for begin, end in zip([0, *parts], parts, strict=False):
        table, alarm = tracking.watchers(WatchSettings(), folder)
        for watcher in (table, alarm):
            watcher.start({"name": "x", "trained_parameters": 1000, "parameters": {}, "step": begin})
        for kind, row in rows:
            if begin < row["step"] <= end + 5:  # some steps beyond the last checkpoint, which the next part repeats
                getattr(table, kind)(row)
                getattr(alarm, kind)(row)
    assert len(whole) == 1 and alerts.raised(folder) == whole


def test_mixed_labels_have_no_gap_and_that_is_said(tmp_path, caplog):
    rows = [(kind, {k: v for k, v in row.items() if k != "train_top1"}) for kind, row in
            changed(0, AFTER, **FAULTS["overfitting"])]  # fmt: skip
    with caplog.at_level("INFO", logger="tcar"):
        assert "overfitting" not in {alert.kind for alert in followed(rows, tmp_path)}
    assert sum("no alert for overfitting" in record.message for record in caplog.records) == 1


def test_a_sender_that_fails_stops_nothing(tmp_path, caplog):
    def broken(alert):
        raise OSError("no way out")

    got = []
    with caplog.at_level("WARNING", logger="tcar"):
        followed(changed(0, AFTER, **FAULTS["divergence"]), tmp_path, senders=[broken, got.append])
    assert [alert.kind for alert in got] == ["divergence"]
    assert any("broken could not pass an alert on" in record.message for record in caplog.records)


def test_finished_fits_are_reviewed_by_their_epochs(caplog):
    caplog.set_level("DEBUG", logger="tcar")
    rows = [row for kind, row in changed(1, AFTER, **FAULTS["plateau"]) if kind == "epoch"]
    old = [{k: v for k, v in row.items() if k not in ("step", "train_top1", "seconds")} for row in rows]
    (found,) = alerts.review(old, WatchSettings(), "motion, seed 1")
    assert (found.kind, found.run, found.step) == ("plateau", "motion, seed 1", 0) and found.epoch > 12
    assert alerts.review(old, WatchSettings(plateau_epochs=100)) == [] and not caplog.records


def test_text_for_a_notebook():
    assert alerts.text([]) == "No alert was raised."
    shown = alerts.text([SOME, SOME])
    assert shown.startswith("**2 alerts were raised.**") and shown.count("**plateau** · x, epoch 1.5, step 7: no") == 2


class TestWebhook:
    """The hook gets every alert, and a hook that does not work is no trouble."""

    @contextmanager
    def server(self, status=200, release=None):
        """A server on this machine: its address, and what was posted to it."""
        got = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                if release is not None:
                    release.wait(10)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", got
        finally:
            server.shutdown()
            server.server_close()

    @pytest.fixture(autouse=True)
    def _no_proxy(self, monkeypatch):
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    def test_it_gets_the_alerts_of_a_training(self, tmp_path):
        with self.server() as (address, got):
            found = followed(changed(0, AFTER, **FAULTS["not a number"]), tmp_path, senders=[Webhook(address)])
        ((kind, body),) = got
        assert kind == "application/json" and body["text"] == str(found[0])
        assert (body["kind"], body["step"], body["fatal"]) == ("not a number", AFTER + 1, True)

    def test_a_slow_one_holds_nothing_up(self):
        release = threading.Event()
        with self.server(release=release) as (address, got):
            hook = Webhook(address)
            hook(SOME)
            assert not got  # the call came back, though nobody has answered yet
            release.set()
            hook.finish()
            assert [body["kind"] for _, body in got] == ["plateau"]

    def test_one_that_refuses_is_told_of_once(self, caplog):
        with self.server(status=500) as (address, got):
            hook = Webhook(address)
            with caplog.at_level("WARNING", logger="tcar"):
                for _ in range(3):
                    hook(SOME)
                    hook.finish()
            assert len(got) == 3
        assert [("does not take alerts" in r.message, address in r.message) for r in caplog.records] == [(True, False)]

    def test_one_that_is_not_there_or_no_address_is_told_of_once(self, caplog):
        with self.server() as (address, _):
            pass
        for wrong in (address, "http://[nothing"):
            caplog.clear()
            hook = Webhook(wrong)
            with caplog.at_level("WARNING", logger="tcar"):
                for _ in range(2):
                    hook(SOME)
                    hook.finish()
            assert len(caplog.records) == 1

    def test_its_address_may_be_in_the_environment(self, monkeypatch):
        monkeypatch.setenv("MY_HOOK", "https://example.org/secret")
        assert Webhook("$MY_HOOK").address == "https://example.org/secret"
        monkeypatch.delenv("MY_HOOK")
        with pytest.raises(ParameterError, match="webhook is .MY_HOOK, but that environment variable"):
            Webhook("$MY_HOOK")
