"""What a training wrote down is whole after a kill and single after a resume, in CSV and in the trackers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from curves import STEPS, changed, healthy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracked_training import row as told

from tcar.lab import params, results
from tcar.lab.params import ParameterError
from tcar.lab.plots import training as figures
from tcar.lab.steps import training
from tcar.train import alerts, tracking
from tcar.train.alerts import Alert
from tcar.train.settings import WatchSettings
from tcar.train.tracking import CsvTracker, LibraryTracker, Table
from tcar.train.watch import StopTraining, Watcher

SCRIPT = Path(__file__).parents[1].joinpath("support", "tracked_training.py")
ABOUT = {
    "name": "first, seed 0", "parameters": {"epochs": 3, "methods": ["a", "b"], "webhook": ""}, "commit": "c0ffee" * 6,
    "trained_parameters": 1234, "step": 0, "seed": 0, "clips": {"train": 5},
}  # fmt: skip


def follow(watcher, rows, about=ABOUT, reason="finished", **changes) -> None:
    watcher.start({**about, **changes})
    for kind, row in rows:
        getattr(watcher, kind)(row)
    if reason:
        watcher.end(reason)


def split(rows) -> tuple[list, list]:
    rows = list(rows)
    return tuple([row for kind, row in rows if kind == wanted] for wanted in ("step", "epoch"))


def test_every_row_is_there_with_every_digit(tmp_path):
    follow(CsvTracker(tmp_path), healthy(0, 2))
    assert tracking.read(tmp_path) == split(healthy(0, 2))
    for name, rows in zip(("steps.csv", "epochs.csv"), split(healthy(0, 2)), strict=True):
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / name), pd.DataFrame(rows))


def test_parameters_commit_and_end_stand_beside_them(tmp_path):
    follow(CsvTracker(tmp_path), healthy(0, 1))
    about = json.loads((tmp_path / "run.json").read_text())
    (part,) = about.pop("parts")
    assert about == ABOUT
    assert part["after_step"] == 0 and part["reason"] == "finished" and part["started"] <= part["ended"]


def test_after_a_kill_every_row_that_was_told_is_there(tmp_path):
    process = subprocess.Popen([sys.executable, SCRIPT, tmp_path, "1000000"], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 40:
            os.kill(process.pid, signal.SIGKILL)
            break
    last = max([int(line) for line in process.stdout if line.endswith("\n")], default=40)
    process.wait()
    steps, _ = tracking.read(tmp_path)
    assert len(steps) >= last >= 40 and steps == [told(number) for number in range(1, len(steps) + 1)]
    assert json.loads((tmp_path / "run.json").read_text())["parts"][0]["ended"] is None


def test_a_full_disk_costs_whole_rows_and_not_the_training(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, "200", "4000"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(number) for number in range(1, 201)]
    assert done.stderr.count("rows are lost until there is room") == 1
    steps, _ = tracking.read(tmp_path)
    assert 50 < len(steps) < 200 and steps == [told(number) for number in range(1, len(steps) + 1)]
    assert (tmp_path / "steps.csv").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("killed", [STEPS, STEPS + 7, 2 * STEPS + 3])
def test_a_resumed_run_has_every_row_once(tmp_path, killed):
    rows, kept = list(healthy(2, 3)), killed // 10 * 10  # a checkpoint every ten steps
    follow(CsvTracker(tmp_path), [(kind, row) for kind, row in rows if row["step"] <= killed], reason="")
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("41,1.0")  # killed within a row
    follow(CsvTracker(tmp_path), [(kind, row) for kind, row in rows if row["step"] > kept], step=kept)
    assert tracking.read(tmp_path) == split(rows)
    parts = json.loads((tmp_path / "run.json").read_text())["parts"]
    assert [(part["after_step"], part["reason"]) for part in parts] == [(0, None), (kept, "finished")]


def test_a_new_training_in_an_old_folder_keeps_nothing_of_the_old_one(tmp_path):
    follow(CsvTracker(tmp_path), healthy(0, 3))
    follow(CsvTracker(tmp_path), healthy(1, 1))
    assert tracking.read(tmp_path) == split(healthy(1, 1))
    assert len(json.loads((tmp_path / "run.json").read_text())["parts"]) == 1


def test_a_value_that_comes_later_gets_a_column(tmp_path):
    table = Table(tmp_path / "some.csv")
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "loss/order": 0.1}, {"step": 3, "loss": float("inf")}]
    for row in rows:
        table.add(row)
    assert table.rows() == rows
    assert (tmp_path / "some.csv").read_text().splitlines()[0] == "step,loss,loss/order"


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "steps.csv").write_text("step,loss\n1,much\n")
    with pytest.raises(results.ResultError, match="steps.csv: not a table of numbers"):
        tracking.read(tmp_path)
    for line in ("{", "[]", '{"mine": 1}'):
        (tmp_path / "alerts.jsonl").write_text(f"{line}\n")
        with pytest.raises(results.ResultError, match="alerts.jsonl: not a list of alerts"):
            alerts.raised(tmp_path)


def test_an_unknown_tracker_is_refused_and_the_known_ones_are_named(tmp_path):
    with pytest.raises(ParameterError, match="trackers.*tensorbord.*csv, tensorboard, wandb"):
        params.from_values({"trackers": ["tensorbord"]})
    with pytest.raises(ParameterError, match="trackers names mlflow; there are csv, tensorboard, wandb"):
        tracking.watchers(WatchSettings(trackers=["mlflow"]), tmp_path)


def test_csv_is_always_there_and_the_alarm_comes_last(tmp_path):
    for trackers in ([], ["wandb"], ["tensorboard", "csv", "wandb"]):
        made = tracking.watchers(WatchSettings(trackers=trackers), tmp_path)
        libraries = ["LibraryTracker"] * len({*trackers} - {"csv"})
        assert [type(watcher).__name__ for watcher in made] == ["CsvTracker", *libraries, "Alarm"]
        assert all(isinstance(watcher, Watcher) for watcher in made)


@pytest.mark.parametrize(
    ("webhook", "shown"), [("https://h.example/T0/secret", "(not shown)"), ("$HOOK", "$HOOK"), ("", "")]
)
def test_the_address_of_a_webhook_is_written_nowhere(tmp_path, webhook, shown):
    parameters = {**ABOUT["parameters"], "webhook": webhook}
    for watcher in (CsvTracker(tmp_path), LibraryTracker("tensorboard", tmp_path)):
        follow(watcher, healthy(0, 1), parameters=parameters)
    assert json.loads((tmp_path / "run.json").read_text())["parameters"]["webhook"] == shown
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


class TestTensorBoard:
    """Read back with TensorBoard's own reader."""

    def test_values_and_parameters(self, tmp_path):
        follow(LibraryTracker("tensorboard", tmp_path), healthy(0, 2))
        found = EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        steps, epochs = split(healthy(0, 2))
        assert [(e.step, e.value) for e in found.Scalars("step/loss")] == [
            (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in steps
        ]
        assert [e.value for e in found.Scalars("epoch/validation_top1")] == pytest.approx(
            [row["validation_top1"] for row in epochs]
        )
        wanted = {f"step/{key}" for key in steps[0]} | {f"epoch/{key}" for key in epochs[0]} - {"epoch/step"}
        assert set(found.Tags()["scalars"]) == wanted - {"step/step"}
        (written,) = (tmp_path / "tensorboard").rglob("hparams.yml")
        kept = yaml.safe_load(written.read_text())
        assert (kept["epochs"], kept["commit"], kept["methods"]) == (3, ABOUT["commit"], '["a", "b"]')

    def test_after_a_resume_the_repeated_steps_are_hidden(self, tmp_path):
        rows = list(healthy(0, 2))
        follow(LibraryTracker("tensorboard", tmp_path), list(changed(0, 20, 2, loss=lambda value, since: 99.0))[:30])
        time.sleep(1.1)  # TensorBoard reads files in the order of the second in which they were begun
        follow(LibraryTracker("tensorboard", tmp_path), [(k, row) for k, row in rows if row["step"] > 20], step=20)
        found = EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        shown = [(e.step, e.value) for e in found.Scalars("step/loss")]
        assert shown == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in split(rows)[0]]


class TestWeightsAndBiases:
    """Offline, and never with a key that is not there."""

    @pytest.fixture(autouse=True)
    def _nobody(self, monkeypatch, tmp_path):
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def test_where_there_is_a_key_it_is_online(self, monkeypatch, tmp_path):
        assert tracking.wandb_mode() == "offline"
        (tmp_path / "netrc").write_text("machine example.org\n login user\n password not-a-key\n")
        assert tracking.wandb_mode() == "offline"
        monkeypatch.setenv("WANDB_BASE_URL", "https://example.org/")
        assert tracking.wandb_mode() == "online"
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert tracking.wandb_mode() == "disabled"
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
        assert tracking.wandb_mode() == "online"

    def test_offline_it_keeps_values_parameters_and_alerts(self, tmp_path):
        import wandb

        watchers = tracking.watchers(WatchSettings(trackers=["wandb"], throughput_collapse=0.0), tmp_path)
        rows = [row for kind, row in changed(0, 20, 1, loss=lambda value, since: float("nan")) if kind == "step"]
        for watcher in watchers:
            watcher.start(ABOUT)
        for row in rows[:20]:
            for watcher in watchers:
                watcher.step(row)
        *trackers, alarm = watchers
        for watcher in trackers:
            watcher.step(rows[20])
        with pytest.raises(StopTraining, match="not a number"):
            alarm.step(rows[20])
        for watcher in watchers:
            watcher.end("not a number")
        wandb.teardown()  # its service writes from a process of its own, and may still be at it after the end of a run
        (kept,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
        content = kept.read_bytes()
        for wanted in (b"step/gradient_norm", b"trained_parameters", ABOUT["commit"].encode(), b"not a number: first"):
            assert wanted in content

    def test_a_library_that_fails_is_told_of_once_and_left_alone(self, tmp_path, monkeypatch, caplog):
        import wandb

        def broken(**_):
            raise RuntimeError("no service")

        monkeypatch.setattr(wandb, "init", broken)
        watcher = LibraryTracker("wandb", tmp_path)
        with caplog.at_level("WARNING", logger="tcar"):
            follow(watcher, healthy(0, 1))
            watcher.alert(Alert("x", "plateau", "m", 1, 1.0))
        assert ["wandb failed, and the run goes on without it" in r.message for r in caplog.records] == [True]


class TestRuns:
    """The table of trainings, and their figures."""

    def record(self, name, top1, **settings) -> training.Record:
        history = [{"epoch": i + 1, "validation_top1": value, "validation_loss": 1.0} for i, value in enumerate(top1)]
        return training.Record(name, {"name": name, "epochs": 3, "heads": 4} | settings, 10, history, 2.0)

    def test_it_shows_what_differs_best_first(self):
        records = self.record("a", [0.1, 0.3, 0.2]), self.record("b", [0.5], heads=8), self.record("c", [])
        table = training.table(records)
        assert [(row["training"], row["heads"], row["validation top-1"], row["best epoch"]) for row in table] == [
            ("b", 8, 0.5, 1), ("a", 4, 0.3, 2), ("c", 4, None, None),
        ]  # fmt: skip
        # Not what is the same in all, nor what is known of none, nor where a run is kept.
        assert not {"gap", "commit", "clips a second", "name"} & set(table[0]) and table[0]["epochs"] == 1
        assert training.table([]) == []

    def test_tracked_trainings_are_found_with_all_that_is_known(self, tmp_path):
        limits = WatchSettings(disk_reserve_gb=0.0)
        for name, after, reason in (("one", 12 * STEPS, "finished"), ("two", 40 * STEPS, "")):
            faults = {"validation_top1": lambda value, since: 0.4, "validation_loss": lambda value, since: 2.0}
            for watcher in tracking.watchers(limits, tmp_path / name):
                follow(watcher, changed(0, after, **faults), {**ABOUT, "name": name}, reason,
                       parameters={"epochs": 40, "heads": len(name), "batch_size": after})  # fmt: skip
        one, two = sorted(training.table(training.tracked(tmp_path)), key=lambda row: row["training"])
        assert (one["alerts"], two["alerts"], one["ended"], two["ended"]) == (
            "plateau", "", "finished", "running, or killed",
        )  # fmt: skip
        steps, epochs = split(healthy(0))
        best = max(epochs, key=lambda row: row["validation_top1"])
        assert two["validation top-1"] == best["validation_top1"] and two["best epoch"] == best["epoch"]
        assert two["gap"] == best["train_top1"] - best["validation_top1"]
        assert two["clips a second"] == pd.Series([row["clips_per_second"] for row in steps]).median()
        assert (two["seconds"], two["commit"], two["batch_size"]) == (400, "c0ffeec0", 40 * STEPS)
        assert "heads" not in two and training.tracked(tmp_path / "nothing") == []

    def test_the_curves_show_the_rows_and_the_alerts(self, tmp_path):
        follow(CsvTracker(tmp_path), healthy(0, 2))
        steps, epochs = tracking.read(tmp_path)
        figure = figures.watched(steps, epochs, [("plateau", 1.5)], "x")
        lines = {line.get_label(): line.get_ydata() for axis in figure.axes for line in axis.lines}
        assert list(lines["validation"]) == [row["validation_top1"] for row in epochs]
        assert list(lines["a step"]) == [row["loss"] for row in steps]
        assert list(lines["memory"]) == [1000.0] * len(steps)
        assert sum(list(line.get_xdata()) == [1.5, 1.5] for axis in figure.axes for line in axis.lines) == 6
        assert figures.watched([], [], []).axes  # before the first row

    def test_the_best_of_many_have_names(self):
        figure = figures.compared({f"r{i}": [{"epoch": 1, "validation_top1": i / 20}] for i in range(12)} | {"new": []})
        shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert shown == [f"r{i}" for i in range(11, 3, -1)] and len(figure.axes[0].lines) == 12

    def test_a_notebook_sees_curves_and_alerts_after_every_epoch(self, tmp_path, monkeypatch):
        shown, alert = [], Alert("x", "plateau", "m", 3, 1.0)

        class Place:
            def __init__(self, content):
                shown.append(("new", content))

            def update(self, content):
                shown.append(("update", content))

        monkeypatch.setattr("IPython.display.display", lambda content, display_id: Place(content))
        table, live = CsvTracker(tmp_path), training.LiveCurves(tmp_path)
        for watcher in (table, live):
            watcher.start(ABOUT)
        (tmp_path / alerts.FILE).write_text(json.dumps(alert.__dict__) + "\n" + '{"run": "cut sho')
        for kind, row in healthy(0, 3):
            for watcher in (table, live):
                getattr(watcher, kind)(row)
        live.end("finished")
        assert [how for how, _ in shown] == ["new"] * 2 + ["update"] * 4
        assert len(shown[-2][1].axes[0].lines[1].get_xdata()) == 3 and "plateau" in shown[-1][1].data
        for watcher in (table, live):  # resumed: the same place
            watcher.start({**ABOUT, "step": 3 * STEPS})
        live.epoch({})
        assert [how for how, _ in shown[6:]] == ["update"] * 2
        live.start(ABOUT)
        live.epoch({})
        assert [how for how, _ in shown[8:]] == ["new"] * 2
