"""The table of trainings, and their figures."""

import json

import pandas as pd
from curves import ABOUT, STEPS, changed, follow, healthy, split

from tcar.lab.plots import training as figures
from tcar.lab.steps import training
from tcar.train import alerts, tracking
from tcar.train.alerts import Alert
from tcar.train.settings import WatchSettings
from tcar.train.tracking import CsvTracker


def record(name, top1, **settings) -> training.Record:
    history = [{"epoch": i + 1, "validation_top1": value, "validation_loss": 1.0} for i, value in enumerate(top1)]
    return training.Record(name, {"name": name, "epochs": 3, "heads": 4} | settings, 10, history, 2.0)


def test_it_shows_what_differs_best_first():
    table = training.table([record("a", [0.1, 0.3, 0.2]), record("b", [0.5], heads=8), record("c", [])])
    assert [(row["training"], row["heads"], row["validation top-1"], row["best epoch"]) for row in table] == [
        ("b", 8, 0.5, 1), ("a", 4, 0.3, 2), ("c", 4, None, None),
    ]  # fmt: skip
    # Not what is the same in all, nor what is known of none, nor where a run is kept.
    assert not {"gap", "commit", "clips a second", "name"} & set(table[0]) and table[0]["epochs"] == 1
    assert training.table([]) == []


def test_tracked_trainings_are_found_with_all_that_is_known(tmp_path):
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


def test_the_curves_show_the_rows_and_the_alerts(tmp_path):
    follow(CsvTracker(tmp_path), healthy(0, 2))
    steps, epochs = tracking.read(tmp_path)
    figure = figures.watched(steps, epochs, [("plateau", 1.5)], "x")
    lines = {line.get_label(): line.get_ydata() for axis in figure.axes for line in axis.lines}
    assert list(lines["validation"]) == [row["validation_top1"] for row in epochs]
    assert list(lines["a step"]) == [row["loss"] for row in steps]
    assert list(lines["memory"]) == [1000.0] * len(steps)
    assert sum(list(line.get_xdata()) == [1.5, 1.5] for axis in figure.axes for line in axis.lines) == 6
    assert figures.watched([], [], []).axes  # before the first row


def test_the_best_of_many_have_names():
    figure = figures.compared({f"r{i}": [{"epoch": 1, "validation_top1": i / 20}] for i in range(12)} | {"new": []})
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == [f"r{i}" for i in range(11, 3, -1)] and len(figure.axes[0].lines) == 12


def test_a_notebook_sees_curves_and_alerts_after_every_epoch(tmp_path, monkeypatch):
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
