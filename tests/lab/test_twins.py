"""The figure of one pair of twins says what the clips are, and what tells them."""

from pathlib import Path

import pytest

from tcar.lab.steps import twins, words
from tcar.tabletop.dataset import render_dataset
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.templates import LABELS

SETTINGS = {"train_sets": 1, "validation_sets": 1, "test_sets": 1, "lengths": [16]}


def test_the_two_clips_have_the_same_ways_and_another_thing_that_counts(tmp_path: Path):
    drawn = TabletopSettings(classes=[42, 40], **SETTINGS)
    root = render_dataset(tmp_path, drawn, workers=1)
    told = {"twins": [LABELS[42], LABELS[40]], "low": 0.4, "high": 0.6}
    rows = [told | {"probe": "true flow", "value": 0.5}, told | {"probe": "oracle", "value": 1.0},
            {"twins": ["a", "b"], "probe": "true flow", "value": 0.1}]  # fmt: skip
    figure, behind = twins.exclusive_or(root, drawn, rows)
    closer, away, table, bars = figure.axes
    ways = [[(note.xyann, note.xy) for note in axis.texts] for axis in (closer, away)]
    assert [str(way) for way in ways[0]] == [str(way) for way in ways[1]] and len(ways[0]) == 3
    acting = [[note.arrow_patch.get_edgecolor() for note in axis.texts] for axis in (closer, away)]
    assert acting[0] != acting[1] and len(set(acting[0])) == len(set(acting[1])) == 2
    assert [text.get_text() for text in table.texts] == ["closer", "away", "away", "closer"]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.5, 1.0])
    assert set(behind) == {"true flow", "oracle"}


def test_a_rendering_without_that_family_has_no_such_figure(tmp_path: Path):
    drawn = TabletopSettings(classes=[45, 43], **SETTINGS)
    assert twins.exclusive_or(render_dataset(tmp_path, drawn, workers=1), drawn, []) is None


def test_the_verdict_counts_what_was_measured_and_names_what_is_not_where_it_should_be():
    def row(probe, value, low, high, blind=False, sufficient=False):
        return {"probe": probe, "twins": ["up", "down"], "value": value, "low": low, "high": high, "blind": blind,
                "sufficient": sufficient}  # fmt: skip

    rows = [row("true flow", 0.5, 0.5, 0.5, blind=True), row("length", 0.55, 0.45, 0.65, blind=True),
            row("file size", 0.7, 0.6, 0.8, blind=True), row("oracle", 0.8, 0.7, 0.9, sufficient=True),
            row("first frame", 0.3, 0.2, 0.4)]  # fmt: skip
    said = words.probe_verdict(rows, 0.95)
    assert "3 probes" in said and "1 of them see exactly" in said and "the other 2, 1 exclude one half" in said
    assert [line.split(":")[0] for line in said.splitlines()[1:]] == ["- file size", "- oracle"]
