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
from curves import ABOUT, STEPS, changed, follow, healthy, split
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracked_training import row as told

from tcar.lab import results
from tcar.train import alerts, tracking
from tcar.train.alerts import Alert
from tcar.train.settings import WatchSettings
from tcar.train.tracking import CsvTable, CsvTracker, LibraryTracker
from tcar.train.watch import StopTraining, Watcher

SCRIPT = Path(__file__).parents[1].joinpath("support", "tracked_training.py")


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
    table = CsvTable(tmp_path / "some.csv")
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


def test_csv_is_always_there_and_the_alarm_comes_last(tmp_path):
    for trackers in ([], ["wandb"], ["tensorboard", "csv", "wandb"]):
        made = tracking.watchers(WatchSettings(trackers=trackers), tmp_path)
        libraries = ["LibraryTracker"] * len({*trackers} - {"csv"})
        assert [type(watcher).__name__ for watcher in made] == ["CsvTracker", *libraries, "Alarm"]
        assert all(isinstance(watcher, Watcher) for watcher in made)


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

    def test_without_a_key_and_a_word_it_is_offline(self, monkeypatch, tmp_path):
        assert tracking.wandb_mode() == "offline"
        (tmp_path / "netrc").write_text("machine example.org\n login user\n password not-a-key\n")
        assert tracking.wandb_mode() == "offline"
        monkeypatch.setenv("WANDB_BASE_URL", "https://example.org/")
        assert tracking.wandb_mode() is None
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            assert tracking.wandb_mode() == "offline"
            monkeypatch.setenv(name, "disabled")
            assert tracking.wandb_mode() is None
            monkeypatch.delenv(name)

    def test_offline_it_keeps_values_parameters_and_alerts(self, tmp_path):
        import wandb

        watchers = tracking.watchers(WatchSettings(trackers=["wandb"]), tmp_path)
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
