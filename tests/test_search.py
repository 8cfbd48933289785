"""The search: what may be searched, no trial lost or done twice whoever is killed, and a winner that a run accepts."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy import stats

from tcar import params, search
from tcar.params import ParameterError
from tcar.plots import search as figures
from tcar.search import space as search_space
from tcar.search import study as search_study
from tcar.search.space import load_settings
from tcar.search.study import SearchError, Worker, open_storage, open_study, plan, standing
from tcar.stages import search as stage
from tcar.tokens import TokenSet

ROOT = Path(__file__).parents[1]
SPACE = """space:
  learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
  heads: [2, 4, 8]
  fusion_blocks: {low: 1, high: 3}
"""
BASE = """# A base.
name: small # its folder
epochs: 3
learning_rate: 0.001 # a guess
log_level: WARNING
publish: true
"""


@pytest.fixture
def here(project) -> Path:
    (project / "params").mkdir()
    (project / "params" / "small.yaml").write_text(BASE)
    return project


def file(project: Path, text: str = "", space: str = SPACE) -> Path:
    path = project / "params" / "search.yaml"
    path.write_text(f"name: found\nbase: params/small.yaml\n{space}{text}")
    return path


def curve(proposed: params.Params, seed: int, report) -> float:
    """A score with one best place, at a learning rate of 0.003; the seed moves it a little."""
    distance = abs(np.log10(proposed.training.learning_rate / 0.003))
    moved = 0.005 * np.sin(seed + 1000 * proposed.training.learning_rate)
    reached = float(0.9 - 0.2 * distance + 0.01 * proposed.fusion.fusion_blocks + moved)
    for epoch in range(1, 4):
        report(epoch, reached * epoch / 3)
    return reached


def worker(settings: search_space.SearchSettings, count: int, **options) -> Worker:
    storage = open_storage(settings.address)
    study = open_study(storage, settings.name, settings.definition())
    plan(study, [({}, {})] * count)
    return Worker(storage, study, count, lambda slot: search.sampler_of(settings, slot), **options)


def trials(settings: search_space.SearchSettings) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=settings.name, storage=open_storage(settings.address)).trials


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
        assert stage.fusion_config(proposed, semantic_width=128, motion_width=128, num_classes=32).heads in (4, 8)


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


# The book ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["journal", "database"])
def test_exactly_the_asked_number_is_done_and_more_can_be_asked_for_later(here, kind):
    settings = load_settings(file(here, "sampler: random\npruner: none"))
    if kind == "database":  # one process alone may use SQLite
        settings = dataclasses.replace(settings, storage=f"sqlite:///{here}/book.db")
    done = []
    for count in (4, 4, 6):
        worker(settings, count).work(lambda trial, report: done.append(trial.user_attrs["slot"]) or 0.5)
    assert done == [0, 1, 2, 3, 4, 5]


def test_another_definition_under_the_same_name_is_refused_and_named(here):
    settings = load_settings(file(here))
    worker(settings, 1)
    other = load_settings(file(here, space=SPACE.replace("[2, 4, 8]", "[2, 4]")))
    with pytest.raises(SearchError, match=r"space\.heads was \[2, 4, 8\], is \[2, 4\]"):
        worker(other, 1)
    (here / "params" / "small.yaml").write_text(BASE + "weight_decay: 0.2\n")
    with pytest.raises(SearchError, match=r"base\.weight_decay was 0\.05, is 0\.2"):
        worker(load_settings(file(here)), 1)


def test_what_two_workers_plan_at_once_counts_once(here):
    settings = load_settings(file(here, "sampler: random"))
    first = worker(settings, 3)
    for slot in (2, 0, 1):  # as a second worker does that has seen the study still empty
        first.study.enqueue_trial({}, user_attrs={"slot": slot, "attempt": 1})
    done = []
    first.work(lambda trial, report: done.append(trial.user_attrs["slot"]) or 1.0)
    assert sorted(done) == [0, 1, 2]


def test_a_waiting_trial_is_claimed_by_one_worker_only(here):
    settings = load_settings(file(here))
    first, second = worker(settings, 2), worker(settings, 2)
    claimed = [first.claim(), second.claim(), first.claim(), second.claim()]
    assert [trial and trial.user_attrs["slot"] for trial in claimed] == [0, 1, None, None]


def test_silence_is_death_only_after_the_patience_and_a_dead_trial_comes_again_with_its_parameters(here, monkeypatch):
    settings = load_settings(file(here, "sampler: random"))
    gone, other = worker(settings, 1), worker(settings, 1, patience=60.0)
    clock = [1000.0]
    monkeypatch.setattr(search_study.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(search_study, "_place", lambda: "elsewhere")
    lost = gone.claim()
    proposed = search.suggest(lost, settings)
    monkeypatch.undo()
    monkeypatch.setattr(search_study.time, "monotonic", lambda: clock[0])
    for beat in (1, 2, 3):  # signs of life, 50 s apart
        lost.set_user_attr("beat", beat)
        other.recover()
        clock[0] += 50
    assert other.claim() is None
    clock[0] += 20  # 70 s since the last one
    other.recover()
    again = other.claim()
    assert again.user_attrs["attempt"] == 2
    assert search.suggest(again, settings) == proposed
    assert other.claim() is None
    # The worker that was only slow finds its trial taken, and leaves the new one alone.
    assert not gone._finish(lost.number, TrialState.COMPLETE, [1.0])
    assert standing(other.study)[0].state == TrialState.RUNNING


def test_a_trial_that_is_done_after_all_is_not_done_again(here, monkeypatch):
    """Another worker takes the trial for dead and plans it again, and in that moment it is finished."""
    settings = load_settings(file(here))
    slow, other = worker(settings, 1), worker(settings, 1)
    trial = slow.claim()
    monkeypatch.setattr(search_study, "_lives", lambda owner: False)
    closed = other._finish
    monkeypatch.setattr(other, "_finish", lambda *given, **reason: (
        slow._finish(trial.number, TrialState.COMPLETE, [0.7]), closed(*given, **reason))[1])  # fmt: skip
    other.recover()
    assert len(other.study.trials) == 2
    assert other.claim() is None
    assert [found.value for found in search_study.finished(other.study, 1)] == [0.7]


def test_a_trial_that_kills_its_workers_is_given_up_and_reported(here, monkeypatch):
    settings = load_settings(file(here))
    killed = worker(settings, 1, attempts=2)
    monkeypatch.setattr(search_study, "_lives", lambda process: "place" not in process)  # the command does
    for attempt in (1, 2):
        assert killed.claim().user_attrs["attempt"] == attempt
        killed.recover()
    assert killed.claim() is None
    assert [trial.state for trial in standing(killed.study).values()] == [TrialState.FAIL]
    assert "2 attempts" in standing(killed.study)[0].user_attrs["reason"]


def test_a_trial_whose_whole_command_is_killed_again_and_again_is_never_lost(here, monkeypatch):
    settings = load_settings(file(here, "sampler: random"))
    killed = worker(settings, 1, attempts=2)
    monkeypatch.setattr(search_study, "_lives", lambda process: False)
    proposed = []
    for attempt in range(1, 7):
        trial = killed.claim()
        assert trial.user_attrs["attempt"] == attempt
        proposed.append(search.suggest(trial, settings))
        killed.recover()
    assert proposed == proposed[:1] * 6
    monkeypatch.undo()
    killed.work(lambda trial, report: 0.5)
    assert [trial.value for trial in search_study.finished(killed.study, 1)] == [0.5]


def test_the_last_worker_s_death_counts_against_its_trial(here):
    """One worker, which its trial kills: each start of the command tells of it, and after all attempts goes on."""
    file(here, "sampler: random\npruner: none\ntrials: 2\nfinalists: 1\nseeds: [0, 1]\nattempts: 2\n")
    deadly = SCRIPT.replace('note("begun")', """note("begun")
        if seed == 100 and sum("begun" in line for line in open("deeds.log")) < 3:
            os.kill(os.getpid(), 9)""").replace("workers=2", "workers=1")  # fmt: skip
    (here / "script.py").write_text(deadly)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ends = [subprocess.run([sys.executable, "script.py"], cwd=here, env=environment, capture_output=True, text=True)
            for _ in range(3)]  # fmt: skip
    assert [end.returncode for end in ends] == [1, 1, 0]
    assert all("all workers ended before 2 trials were done" in end.stderr for end in ends[:2])
    assert ends[2].stdout.split() == ["2", "1"]
    assert "its worker died, as in all of 2 attempts" in ends[1].stderr


def test_a_process_number_that_was_given_away_is_no_life(here):
    mine = search_study._owner()
    assert search_study._lives(mine)
    assert not search_study._lives(mine | {"since": mine["since"] - 3600})


def test_one_bad_trial_is_recorded_and_three_at_the_start_end_the_worker(here):
    settings = load_settings(file(here))

    def some(trial, report):
        if trial.user_attrs["slot"] == 1:
            raise ValueError("heads do not divide width")
        return float("nan") if trial.user_attrs["slot"] == 2 else 0.5

    worker(settings, 4).work(some)
    found = trials(settings)
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert "heads do not divide width" in found[1].user_attrs["reason"]
    assert "nan" in found[2].user_attrs["reason"]

    broken = load_settings(file(here, "storage: broken.journal"))
    with pytest.raises(SearchError, match="first 3 trials.*no tokens"):
        worker(broken, 9).work(lambda trial, report: (_ for _ in ()).throw(OSError("no tokens")))


def test_a_half_written_last_line_is_cut_off(here):
    settings = load_settings(file(here))
    worker(settings, 2)
    with open(settings.address, "ab") as journal:
        journal.write(b'{"op_code":4,"worker_')
    done = []
    worker(settings, 2).work(lambda trial, report: done.append(trial.user_attrs["slot"]) or 1.0)
    assert done == [0, 1]
    assert all(json.loads(line) for line in Path(settings.address).read_text().splitlines())


def test_a_trial_below_the_median_is_pruned_and_no_finalist(here):
    settings = load_settings(file(here, "sampler: random"))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    storage = open_storage(settings.address)
    open_study(storage, settings.name, {})
    study = optuna.load_study(study_name=settings.name, storage=storage, pruner=pruner)
    plan(study, [({}, {})] * 4)
    height, epochs = {0: 0.4, 1: 0.6, 2: 0.1, 3: 0.7}, []

    def evaluate(trial, report):
        for epoch in (1, 2, 3):
            epochs.append((trial.user_attrs["slot"], epoch))
            report(epoch, height[trial.user_attrs["slot"]] + 0.01 * epoch)
        search.suggest(trial, settings)
        return height[trial.user_attrs["slot"]]

    Worker(storage, study, 4, lambda slot: search.sampler_of(settings, slot)).work(evaluate)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert (2, 2) not in epochs
    assert (3, 3) in epochs
    assert search.best(study.trials, 9) == [study.trials[number].params for number in (3, 1, 0)]


SCRIPT = """
import os, sys, time
from tcar.search import search
from tcar.search.space import load_settings

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
    """A worker is killed, then the whole command; the trainings' own log is the witness, not the study."""
    file(here, "sampler: random\npruner: none\ntrials: 20\nfinalists: 1\nseeds: [0, 1]\n")
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
    before = len(deeds(here, "done"))
    assert before < 20
    resumed = start()
    output, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0
    assert output.split() == ["20", "20"]
    done = [rate for rate, _ in deeds(here, "done")]
    assert len(done) == len(set(done)) == 20
    # Begun twice is only what a kill cut off: at most one trial of the worker, and two of the command.
    begun = [rate for rate, _ in deeds(here, "begun")]
    assert set(begun) == set(done)
    assert 20 <= len(begun) <= 23
    assert len({process for _, process in deeds(here, "done")}) >= 3
    for seed in (0, 1):  # the base and one finalist with each seed
        assert len(deeds(here, "done", seed)) == 2


# The outcome -------------------------------------------------------------------------------------------------------


def make_curve(settings):
    return curve


@pytest.fixture
def record(here, monkeypatch) -> tuple[search_space.SearchSettings, dict]:
    """A whole search in this process: 12 trials of a score that is known."""

    def alone(settings, study, count, make_score, workers, what):
        search.take_part(settings, study.study_name, count, make_score(settings))

    monkeypatch.setattr(search, "_together", alone)
    settings = load_settings(file(here, "trials: 12\nfinalists: 2\nseeds: [0, 1, 2]\n"))
    return settings, stage.run_search(settings, 1, make_curve, {"tokens": "none"})


def test_the_winner_is_a_parameter_file_that_differs_from_the_base_where_it_says(here, record):
    settings, made = record
    written = params.load(here / "params" / "found.yaml")
    changes = made["winner"]["changes"]
    assert set(changes) == {"learning_rate", "heads", "fusion_blocks"}
    base = params.load(here / "params" / "small.yaml")
    assert written.as_dict() == base.as_dict() | changes | {"name": "found", "publish": False}
    text = (here / "params" / "found.yaml").read_text()
    assert "a guess, was 0.001" in text
    assert "12 trials" in text
    assert "synthetic" in text
    assert stage.run_search(settings, 1, make_curve, {"tokens": "none"}) == made  # nothing is trained again
    (here / "params" / "found.yaml").write_text("name: found\n")
    with pytest.raises(ParameterError, match="not written by a search"):
        stage.run_search(settings, 1, make_curve, {"tokens": "none"})


def test_the_outcome_compares_winner_and_base_over_the_same_seeds(record):
    settings, made = record
    scores = [np.array(list(made[who]["scores"].values())) for who in ("winner", "base")]
    assert made["winner"]["value"] == max(row["value"] for row in made["finalists"])
    assert made["comparison"]["difference"] == pytest.approx(scores[0].mean() - scores[1].mean())
    low, high = stats.t.interval(0.95, 2, scores[1].mean(), stats.sem(scores[1]))
    assert (made["base"]["low"], made["base"]["high"]) == pytest.approx((low, high))
    tops = [np.array(list(row["scores"].values())) for row in made["finalists"]]
    ps = [stats.ttest_rel(top1, scores[1]).pvalue for top1 in tops]
    assert made["comparison"]["p"] == pytest.approx(ps[made["finalists"].index(made["winner"])])
    holm = {min(ps): min(1.0, 2 * min(ps)), max(ps): min(1.0, max(2 * min(ps), max(ps)))}  # of two finalists
    assert made["comparison"]["holm"] == pytest.approx(holm[ps[made["finalists"].index(made["winner"])]])
    assert made["beats_base"] == (made["comparison"]["low"] > 0 and made["comparison"]["holm"] < 0.05)
    best = made["winner"]["changes"]
    expected = [curve(settings.proposed(best), seed, lambda epoch, score: None) for seed in settings.seeds]
    assert scores[0] == pytest.approx(expected)
    for compared, words in (({"low": -0.02, "high": 0.01}, "does not beat"), ({"low": -0.02, "high": -0.01}, "worse")):
        test = made["comparison"] | compared
        assert words in stage.sentence(made | {"comparison": test, "beats_base": False})


def test_a_published_outcome_is_found_by_the_runs_it_belongs_to(here, record):
    settings, made = record
    base = settings.base
    path = stage.publish(settings, made)
    assert path == here / "paper" / "results" / "search.json"
    assert (base.results_dir / "search.json").read_bytes() == path.read_bytes()
    (base.results_dir / "search.json").unlink()
    assert stage.published(base)["comparison"] == pytest.approx(made["comparison"])
    for other, found in (({"search_trials": 3}, True), ({"learning_rate": 0.002}, False), ({"width": 80}, False)):
        changed = params.from_values(base.as_dict() | other)
        assert (stage.published(dataclasses.replace(changed, root=base.root)) is not None) == found, other
    quiet = dataclasses.replace(base, common=dataclasses.replace(base.common, publish=False))
    path.unlink()
    stage.publish(dataclasses.replace(settings, base=quiet), made)
    assert not path.exists()


def test_what_matters_is_found_and_drawn(record):
    _, made = record
    assert sum(made["importance"].values()) == pytest.approx(1)
    assert max(made["importance"], key=made["importance"].get) == "learning_rate"
    fig = figures.importance(made["importance"], 12)
    bars = {tick.get_text(): bar.get_width() for tick, bar in zip(fig.axes[0].get_yticklabels(), fig.axes[0].patches,
                                                                    strict=True)}  # fmt: skip
    assert bars == made["importance"]
    lines = figures.parallel(made["trials"], made["space"]).axes[0].get_lines()
    drawn = [line.get_ydata() for line in lines if len(line.get_ydata()) == 3 and line.get_zorder() in (1, 2)]
    assert len(drawn) == 12
    first = made["trials"][0]["changes"]
    assert drawn[0][0] == pytest.approx((np.log10(first["learning_rate"]) + 4) / 2)
    assert drawn[0][1] == [2, 4, 8].index(first["heads"]) / 2
    failed = {"slot": 12, "state": "fail", "score": None, "changes": {}}
    history = figures.history([*made["trials"], failed]).axes[0]
    shown = {line.get_label(): line for line in history.get_lines()}
    done = [trial["score"] for trial in made["trials"] if trial["state"] == "complete"]
    assert shown["best so far"].get_ydata()[-1] == max(done)
    assert list(shown["failed"].get_xdata()) == [12]


def test_tokens_give_the_same_score_every_time_and_too_large_a_fusion_is_refused(here):
    generator = np.random.default_rng(0)
    xyz = generator.random((4, 3)).astype(np.float32)

    def tokens(count: int) -> TokenSet:
        labels = generator.integers(0, 3, count)
        values = (generator.standard_normal((count, 4, 8)) + labels[:, None, None]).astype(np.float16)
        return TokenSet(values, xyz, values, xyz, labels, [str(i) for i in range(count)])

    score = stage.TokenScore(tokens(40), tokens(20), 3)
    settings = load_settings(file(here, "trial: {warmup_epochs: 1, fusion_width: 16}\n"))
    seen = []
    changes = {"learning_rate": 0.01, "heads": 2, "fusion_blocks": 1}
    reached = [score(settings.proposed(changes), 3, lambda epoch, top1: seen.append((epoch, top1))) for _ in range(2)]
    assert reached[0] == reached[1] == max(top1 for _, top1 in seen)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 1, 2, 3]
    few = params.from_values(settings.proposed(changes).as_dict() | {"max_trained_parameters": 100})
    with pytest.raises(ValueError, match="max_trained_parameters"):
        score(few, 3, lambda epoch, top1: None)
