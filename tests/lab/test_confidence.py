"""The parameter `confidence` decides every interval, and every caption, axis and sentence says which it is."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats
from test_report import run_in, write_results

from tcar.lab.paper import report
from tcar.lab.paper.tables import tables
from tcar.lab.plots import data, features, scores, training
from tcar.tabletop import probes
from tcar.tabletop.templates import FAMILIES, LABELS

ENTRY = {"value": 0.5, "low": 0.4, "high": 0.6}
ROW = {"stream": "motion", "target": "class", "pooling": "averaged", "chance": 0.1, **ENTRY}
TERM = {"term": "mixup", "value": 0.2, "on_by_default": True, "difference": 0.1, "low": 0.0, "high": 0.2}
DRAWN = {
    "methods": lambda **level: scores.methods({"motion": {"top1": ENTRY}}, ("top1",), **level),
    "per group": lambda **level: scores.per_group({"motion": {"direction": ENTRY}}, **level),
    "stream probes": lambda **level: features.stream_probes([ROW], **level),
    "probes": lambda **level: data.probes({"direction": {"oracle": ENTRY}}, **level),
    "loss terms": lambda **level: training.loss_terms([TERM], **level),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(("confidence", "said"), [(0.95, "95%"), (0.8, "80%"), (0.975, "97.5%"), (0.999, "99.9%")])
def test_a_figure_says_which_intervals_it_shows(name, confidence, said):
    figure = DRAWN[name](confidence=confidence)
    texts = [axis.get_xlabel() for axis in figure.axes] + [figure.get_supxlabel()]
    stated = [text for text in texts if "interval" in text]
    assert stated and all(f"{said} interval" in text for text in stated)
    plt.close(figure)


def test_captions_and_sentences_follow_it(tmp_path):
    run = run_in(tmp_path, confidence=0.5)
    results = write_results(run.results_dir)
    captions = [table.caption for table in tables(results, run) if "intervals" in table.caption]
    assert len(captions) >= 6 and all("50% intervals" in caption and "95" not in caption for caption in captions)
    said = report.numbers(results, run, [], {})["text"]["blind"]
    told = "Of 2 such probes of single pairs, 0 see the same in both twins; of the intervals of the other 2, 1 excludes"
    assert said == f"{told} 50%."


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_the_intervals_of_the_audit_s_probes_have_it(confidence):
    """Of 400 sets of one clip the interval of a share is nearly normal."""
    family = FAMILIES[name := next(iter(FAMILIES))]
    classes = [LABELS[index] for index in family.pairs[0].twins] * 200
    correct = np.random.default_rng(0).random(400) < 0.7
    asked = probes.Asked(name, classes, [str(n) for n in range(400)],
                         {probe: correct.astype(float) for probe in (*probes.CEILINGS, *probes.LEAKS)})  # fmt: skip
    found = probes._rows(*probes._by_pair(asked)[0], 0, confidence)[0]
    half = stats.norm.ppf((1 + confidence) / 2) * correct.std() / 400**0.5
    assert (found["low"], found["high"]) == pytest.approx((correct.mean() - half, correct.mean() + half), abs=0.004)
