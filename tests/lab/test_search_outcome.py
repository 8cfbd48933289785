"""What a search found: a winner that a run accepts, compared with the base, found by the runs it belongs to."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from searches import curve, file
from token_task import tokens

from tcar.lab import params, search
from tcar.lab.params import ParameterError
from tcar.lab.plots import search as figures
from tcar.lab.search import space as search_space
from tcar.lab.search.space import load_settings
from tcar.lab.search.study import Plan
from tcar.lab.steps import search as step


def make_curve(settings):
    return curve


@pytest.fixture
def record(here, monkeypatch) -> tuple[search_space.SearchSettings, dict]:
    """A whole search in this process: 12 trials of a score that is known."""

    def alone(settings, study, slots, make_score, workers):
        search.take_part(settings, study.study_name, slots, make_score(settings))
        return Plan(study, slots).finished()

    monkeypatch.setattr(search, "_together", alone)
    settings = load_settings(file(here, "trials: 12\nfinalists: 2\nseeds: [0, 1, 2]\n"))
    return settings, step.run_search(settings, 1, make_curve, {"tokens": "none"})


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
    assert step.run_search(settings, 1, make_curve, {"tokens": "none"}) == made  # nothing is trained again
    for other in ("name: found\n", text + "# and what I think of it\n", text.replace("name: found", "name:  found")):
        (here / "params" / "found.yaml").write_text(other)
        with pytest.raises(ParameterError, match=r"found\.yaml: was not written by a search, or edited since"):
            step.run_search(settings, 1, make_curve, {"tokens": "none"})
        assert (here / "params" / "found.yaml").read_text() == other
        assert not list((here / "params").glob(".*"))


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
        assert words in step.sentence(made | {"comparison": test, "beats_base": False})


def test_a_published_outcome_is_found_by_the_runs_it_belongs_to(here, record):
    settings, made = record
    base = settings.base
    path = step.publish(settings, made)
    assert path == here / "paper" / "results" / "search.json"
    assert (base.results_dir / "search.json").read_bytes() == path.read_bytes()
    (base.results_dir / "search.json").unlink()
    assert step.published(base)["comparison"] == pytest.approx(made["comparison"])
    for other, found in (({"search_trials": 3}, True), ({"learning_rate": 0.002}, False), ({"frame_rate": 8}, False)):
        changed = params.from_values(base.as_dict() | other)
        assert (step.published(dataclasses.replace(changed, root=base.root)) is not None) == found, other
    quiet = dataclasses.replace(base, common=dataclasses.replace(base.common, publish=False))
    path.unlink()
    step.publish(dataclasses.replace(settings, base=quiet), made)
    assert not path.exists()


def test_what_matters_is_found_and_drawn(record):
    _, made = record
    assert sum(made["importance"].values()) == pytest.approx(1)
    assert max(made["importance"], key=made["importance"].get) == "learning_rate"
    fig = figures.importance(made["importance"], 12)
    bars = {tick.get_text(): bar.get_width() for tick, bar in zip(fig.axes[0].get_yticklabels(), fig.axes[0].patches,
                                                                    strict=True)}  # fmt: skip
    assert bars == {name.replace("_", " "): share for name, share in made["importance"].items()}
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
    score = step.TokenScore({"train": tokens(40, 1), "validation": tokens(20, 2)}, 5)
    settings = load_settings(file(here, "trial: {warmup_epochs: 1, fusion_width: 16}\n"))
    seen = []
    changes = {"learning_rate": 0.01, "heads": 2, "fusion_blocks": 1}
    reached = [score(settings.proposed(changes), 3, lambda epoch, top1: seen.append((epoch, top1))) for _ in range(2)]
    assert reached[0] == reached[1] == max(top1 for _, top1 in seen)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 1, 2, 3]
    few = settings.proposed(changes).as_dict() | {"max_trained_parameters": 100, "ablation_heads": [2]}
    with pytest.raises(ValueError, match="max_trained_parameters"):
        score(params.from_values(few), 3, lambda epoch, top1: None)
