"""The search: what may be searched, and no trial lost or done twice whoever is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from searches import BASE, SPACE, file

from tcar.lab import search
from tcar.lab.params import ParameterError
from tcar.lab.search import space as search_space
from tcar.lab.search import study as search_study
from tcar.lab.search.space import load_settings
from tcar.lab.search.study import Plan, SearchError, open_storage, open_study, work
from tcar.lab.steps import search as step

ROOT = Path(__file__).parents[2]


def plan(settings: search_space.SearchSettings, count: int, patience: float = 60.0, attempts: int = 3) -> Plan:
    """What a process that takes part has to do."""
    study = open_study(open_storage(settings.address, patience), settings.name, settings.definition())
    return Plan(study, [({}, {})] * count, attempts)


def do(planned: Plan, settings: search_space.SearchSettings, evaluate=lambda trial, report: 0.5) -> list[int]:
    """The slots that a worker does, in its order."""
    done = []

    def noted(trial, report):
        done.append(trial.user_attrs["slot"])
        return evaluate(trial, report)

    work(planned, noted, lambda slot: search.sampler_of(settings, slot))
    return done


def begun(planned: Plan, worker: str = "") -> optuna.Trial:
    """A trial that a worker has begun."""
    planned.fill()
    trial = planned.study.ask()
    trial.set_user_attr("worker", worker)
    return trial


# The space ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "space", "named"),
    [
        ("", "space: {learning_rte: [0.1]}", ["learning_rte", "did you mean 'learning_rate'"]),
        ("", "space: {learning_rate: [-1.0]}", ["learning_rate", "-1.0", "at least 0"]),
        ("", "space: {dropout: {low: 0.0, high: 2.0}}", ["dropout", "2.0", "at most 0.95"]),
        ("", "space: {heads: {low: 2.5, high: 4}}", ["heads", "2.5", "expected int"]),
        ("", "space: {learning_rate: {low: 1e-4, high: 0.1}}", ["learning_rate", "write 1.0e-4"]),
        ("", "space: {learning_rate: {low: 0.1, high: 0.01}}", ["learning_rate", "0.01"]),
        ("", "space: {learning_rate: {low: 0.0, high: 0.1, log: true}}", ["learning_rate"]),
        ("", "space: {learning_rate: {low: 0.1}}", ["learning_rate", "low, high, log, step"]),
        ("", "space: {window: [joint, sideways]}", ["window", "sideways", "joint, time, space"]),
        ("", "space: {window: {low: 1, high: 2}}", ["window", "choices"]),
        ("", "space: {heads: [4, 4]}", ["heads", "twice"]),
        ("", "space: {motion_frames: [8, 16]}", ["motion_frames", "cannot be searched"]),
        ("", "space: {heads: [4, 5]}", ["space", "heads has [5] where fusion_width is 64"]),
        ("", "space: {fusion: [cross_attention, gated]}", ["space", "methods", "without gated"]),
        ("", "space: {}", ["space"]),
        ("", "", ["space", "missing"]),
        ("trial: {heads: 2}", SPACE, ["heads", "space and in trial"]),
        ("trial: {epochs: 0}", SPACE, ["trial", "epochs", "at least 1"]),
        ("sampler: best", SPACE, ["sampler", "tpe, random, grid"]),
        ("trials: 0", SPACE, ["trials", "at least 1"]),
        ("trails: 3", SPACE, ["trails", "did you mean 'trials'"]),
        ("seeds: [1]", SPACE, ["seeds", "two"]),
        ("seed: 1", SPACE, ["seed 1", "among seeds"]),
        ("storage: sqlite:///x.db", SPACE, ["SQLite", "journal"]),
        ("sampler: grid", SPACE, ["learning_rate", "step"]),
        ("sampler: grid\ntrials: 7", "space: {heads: [2, 4, 8], fusion_blocks: [1, 2]}", ["6 points", "7"]),
    ],
)
def test_a_wrong_search_is_one_error_that_names_file_or_search_and_key(here, text, space, named):
    with pytest.raises(ParameterError) as error:
        load_settings(file(here, text, f"{space}\n"))
    assert all(word in str(error.value) for word in named), str(error.value)
    assert "search.yaml" in str(error.value) or "found" in str(error.value)


def test_the_search_that_comes_with_the_project_is_valid_and_its_trials_can_be_built():
    settings = load_settings(ROOT / "params" / "search.yaml")
    for number in range(5):
        trial = optuna.create_study(sampler=search.sampler_of(settings, number)).ask()
        proposed = settings.proposed(search.suggest(trial, settings))
        assert proposed.training.epochs == settings.trial["epochs"]
        assert step.fusion_config(proposed, semantic_width=128, motion_width=128, num_classes=32).heads in (4, 8)


def test_a_grid_has_every_point_once_and_random_draws_follow_the_slot_alone(here):
    space = "space: {heads: [2, 4, 8], fusion_blocks: {low: 1, high: 2}, dropout: {low: 0.0, high: 0.2, step: 0.1}}\n"
    settings = load_settings(file(here, "sampler: grid\ntrials: 18", space))
    points = {(p["heads"], p["fusion_blocks"], round(p["dropout"], 6)) for p in search_space.grid(settings)}
    assert points == {(h, b, d) for h in (2, 4, 8) for b in (1, 2) for d in (0.0, 0.1, 0.2)}
    assert len(search_space.grid(settings)) == 18

    settings = load_settings(file(here, "sampler: random\ntrials: 6"))
    drawn = []
    for name, order in (("a", range(6)), ("b", reversed(range(6)))):
        study = optuna.create_study(study_name=name)
        values = {}
        for slot in order:
            study.sampler = search.sampler_of(settings, slot)
            values[slot] = search.suggest(study.ask(), settings)
        drawn.append(values)
    assert drawn[0] == drawn[1]
    assert len({values["learning_rate"] for values in drawn[0].values()}) == 6


# The study ---------------------------------------------------------------------------------------------------------


def test_exactly_the_asked_number_is_done_and_more_can_be_asked_for_later(here):
    settings = load_settings(file(here, "sampler: random\npruner: none"))
    assert [do(plan(settings, count), settings) for count in (4, 4, 6)] == [[0, 1, 2, 3], [], [4, 5]]


def test_another_definition_under_the_same_name_is_refused_and_named(here):
    settings = load_settings(file(here))
    plan(settings, 1)
    other = load_settings(file(here, space=SPACE.replace("[2, 4, 8]", "[2, 4]")))
    with pytest.raises(SearchError, match=r"space\.heads was \[2, 4, 8\], is \[2, 4\]"):
        plan(other, 1)
    (here / "params" / "small.yaml").write_text(BASE + "weight_decay: 0.2\n")
    with pytest.raises(SearchError, match=r"base\.weight_decay was 0\.05, is 0\.2"):
        plan(load_settings(file(here)), 1)


def test_what_two_workers_plan_at_once_is_done_once(here):
    settings = load_settings(file(here, "sampler: random"))
    first = plan(settings, 3)
    first.fill()
    for slot in (2, 0, 1):  # as a second worker does that has seen the study still empty
        first.study.enqueue_trial({}, user_attrs={"slot": slot, "attempt": 1})
    assert do(first, settings) == [0, 1, 2]
    assert do(plan(settings, 5), settings) == [3, 4]


@pytest.mark.parametrize("kind", ["journal", "database"])
def test_a_worker_s_silence_is_its_death_and_its_trial_comes_again_with_its_parameters(here, kind):
    settings = load_settings(file(here, "sampler: random"))
    if kind == "database":  # one process alone may use SQLite
        settings = dataclasses.replace(settings, storage=f"sqlite:///{here}/study.db")
    lost = begun(gone := plan(settings, 1, patience=1))
    lost.study._storage.record_heartbeat(lost._trial_id)
    proposed = search.suggest(lost, settings)
    again = []
    other = plan(settings, 1, patience=1)
    assert do(other, settings, lambda trial, report: again.append(search.suggest(trial, settings)) or 0.7) == [0]
    assert again == [proposed]
    (found,) = other.finished()
    assert found.value == 0.7 and found.user_attrs["attempt"] == 2
    # The worker that was only slow finds its trial taken, and leaves the new one alone.
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        search_study._do(gone.study, lost, lambda trial, report: report(1, 0.9))
    assert [trial.value for trial in gone.finished()] == [0.7]


def test_a_worker_that_gives_signs_of_life_keeps_its_trial(here, monkeypatch):
    settings = load_settings(file(here))
    clock = [1000.0]
    monkeypatch.setattr(search_study.time, "monotonic", lambda: clock[0])
    slow = begun(plan(settings, 1))
    looking = plan(settings, 1).study
    for _ in range(3):  # 50 s apart
        slow.study._storage.record_heartbeat(slow._trial_id)
        search_study.fail_stale_trials(looking)
        clock[0] += 50
    assert looking.trials[0].state == TrialState.RUNNING
    clock[0] += 20  # 70 s since the last one
    search_study.fail_stale_trials(looking)
    assert looking.trials[0].state == TrialState.FAIL


def test_a_trial_that_kills_its_workers_is_given_up_and_reported(here):
    settings = load_settings(file(here))
    killed = plan(settings, 1, attempts=2)
    for attempt in (1, 2):
        assert begun(killed, "a").user_attrs["attempt"] == attempt
        killed.bury("another")
        assert not killed.finished()
        killed.bury("a")
    killed.fill()
    assert [trial.user_attrs["attempt"] for trial in killed.finished()] == [2]
    assert killed.finished()[0].user_attrs["reason"] == "its worker died"


def test_a_trial_whose_whole_command_is_killed_again_and_again_is_never_lost(here):
    settings = load_settings(file(here, "sampler: random"))
    killed = plan(settings, 1, attempts=2)
    proposed = []
    for attempt in range(1, 5):
        trial = begun(killed)
        assert trial.user_attrs["attempt"] == attempt
        proposed.append(search.suggest(trial, settings))
        killed.study.tell(trial, state=TrialState.FAIL)  # without a word, as Optuna closes it
    assert proposed == proposed[:1] * 4
    assert do(killed, settings) == [0]
    assert [trial.value for trial in killed.finished()] == [0.5]


def test_one_bad_trial_is_recorded_and_three_at_the_start_end_the_worker(here):
    settings = load_settings(file(here))

    def some(trial, report):
        if trial.user_attrs["slot"] == 1:
            raise ValueError("heads do not divide width")
        return float("nan") if trial.user_attrs["slot"] == 2 else 0.5

    planned = plan(settings, 4)
    assert do(planned, settings, some) == [0, 1, 2, 3]
    found = planned.finished()
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert "heads do not divide width" in found[1].user_attrs["reason"]
    assert "nan" in found[2].user_attrs["reason"]

    broken = load_settings(file(here, "storage: broken.journal"))
    with pytest.raises(SearchError, match="first 3 trials.*no tokens"):
        do(plan(broken, 9), broken, lambda trial, report: (_ for _ in ()).throw(OSError("no tokens")))


def test_a_half_written_last_line_is_cut_off(here):
    settings = load_settings(file(here))
    plan(settings, 2).fill()
    with open(settings.address, "ab") as journal:
        journal.write(b'{"op_code":4,"worker_')
    assert do(plan(settings, 2), settings) == [0, 1]
    assert all(json.loads(line) for line in Path(settings.address).read_text().splitlines())


def test_a_trial_below_the_median_is_pruned_and_no_finalist(here):
    settings = load_settings(file(here, "sampler: random"))
    planned = plan(settings, 4)
    planned.study.pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    height, epochs = {0: 0.4, 1: 0.6, 2: 0.1, 3: 0.7}, []

    def evaluate(trial, report):
        search.suggest(trial, settings)
        for epoch in (1, 2, 3):
            epochs.append((trial.user_attrs["slot"], epoch))
            report(epoch, height[trial.user_attrs["slot"]] + 0.01 * epoch)
        return height[trial.user_attrs["slot"]]

    do(planned, settings, evaluate)
    found = planned.finished()
    assert [trial.state.name for trial in found] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert (2, 2) not in epochs
    assert (3, 3) in epochs
    assert search.best(found, 9) == [found[number].params for number in (3, 1, 0)]


SCRIPT = """
import os, sys, time
from tcar.lab.search import search
from tcar.lab.search.space import load_settings

def make(settings):
    def score(proposed, seed, report):
        def note(what):
            line = f"{what} {proposed.training.learning_rate!r} {seed} {os.getpid()}\\n"
            handle = os.open("deeds.log", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
            os.write(handle, line.encode())
            os.close(handle)
        note("begun")
        for epoch in range(1, 6):
            time.sleep(0.03)
            report(epoch, epoch / 10)
        note("done")
        return proposed.training.learning_rate
    return score

if __name__ == "__main__":
    found = search(load_settings("params/search.yaml"), make, {}, workers=2)
    print(len(found.trials), [trial.state.name for trial in found.trials].count("COMPLETE"))
"""


def deeds(project: Path, what: str, seed: int = 100) -> list[tuple[str, str]]:
    """(learning rate, process) of what the trainings of the search themselves wrote down."""
    path = project / "deeds.log"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(rate, process) for did, rate, used, process in lines if did == what and int(used) == seed]


def test_twenty_trials_killed_twice_and_resumed_by_two_workers_are_each_done_once(here):
    """A worker is killed, then the whole command; the trainings' own log is the witness of what is done again."""
    file(here, "sampler: random\npruner: none\ntrials: 20\nfinalists: 1\nseeds: [0, 1]\npatience: 3\n")
    (here / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "script.py"], cwd=here, env=environment, text=True,
                                stdout=subprocess.PIPE, start_new_session=True)  # fmt: skip

    def until(count: int) -> None:
        end = time.monotonic() + 120
        while len(deeds(here, "done")) < count:
            assert time.monotonic() < end
            time.sleep(0.02)

    command = start()
    until(3)
    os.kill(int(deeds(here, "begun")[-1][1]), signal.SIGKILL)
    until(8)
    command.kill()
    command.communicate()
    gone = {process for _, process in deeds(here, "begun")}
    assert len(deeds(here, "done")) < 20
    resumed = start()
    output, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0
    assert output.split() == ["20", "20"]
    done, begun = deeds(here, "done"), deeds(here, "begun")
    assert {rate for rate, _ in begun} == {rate for rate, _ in done} and len({rate for rate, _ in done}) == 20
    # Twice is only what a kill cut off before it was kept, be it when all was done but that: the last trial of a killed
    # process; so at most one of the worker, and two of the command.
    assert 20 <= len(done) <= len(begun) <= 23
    last = {process: rate for rate, process in begun}
    for place, (rate, process) in enumerate(begun):
        if rate in [other for other, _ in begun[place + 1 :]]:
            assert process in gone and last[process] == rate
    assert len({process for _, process in deeds(here, "done")}) >= 3
    for seed in (0, 1):  # the base and one finalist with each seed
        assert len(deeds(here, "done", seed)) == 2


def test_the_last_worker_s_death_counts_against_its_trial(here):
    """One worker, which the first trial kills: the command tells of it, and gives that trial up after all attempts."""
    file(here, "sampler: random\npruner: none\ntrials: 2\nfinalists: 1\nseeds: [0, 1]\nattempts: 2\n")
    deadly = SCRIPT.replace('note("begun")', """note("begun")
        if seed == 100 and repr(proposed.training.learning_rate) == open("deeds.log").readline().split()[1]:
            os.kill(os.getpid(), 9)""").replace("workers=2", "workers=1")  # fmt: skip
    (here / "script.py").write_text(deadly)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ends = [subprocess.run([sys.executable, "script.py"], cwd=here, env=environment, capture_output=True, text=True)
            for _ in range(2)]  # fmt: skip
    assert [end.returncode for end in ends] == [1, 0]
    assert "all workers ended before 2 trials were done" in ends[0].stderr
    assert ends[1].stdout.split() == ["2", "1"]
