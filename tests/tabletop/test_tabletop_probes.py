"""The ceilings and leaks of a generated set are where theory puts them."""

import numpy as np
import pytest

from tcar.tabletop import probes
from tcar.tabletop.dataset import render_dataset
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.templates import FAMILIES, LABELS

CLASSES = [42, 40, 45, 43, 38, 39, 109, 47, 74, 68, 18, 17]
TEST_SETS = 24


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("tabletop")
    counts = {"train_sets": 24, "validation_sets": 1, "test_sets": TEST_SETS, "train_sets_by_family": {}}
    drawn = TabletopSettings(classes=CLASSES, **counts, lengths=[16, 24])
    render_dataset(root, drawn, seed=3)
    return probes.measure(root, trees=100)


@pytest.fixture(scope="module")
def by_pair(measured):
    return {(tuple(row["twins"]), row["probe"]): row for row in measured["twins"]}


def pair(*indices: int) -> tuple[str, ...]:
    return tuple(LABELS[index] for index in indices)


def test_every_family_says_what_cannot_tell_its_twins():
    known = {*probes.CEILINGS, *probes.LEAKS}
    for family in FAMILIES.values():
        assert len(family.blind) == len(family.twins)
        assert all(blind <= known and "oracle" not in blind for blind in family.blind)


def test_no_leak_is_near_telling_twins_apart(measured):
    """Four standard deviations of guessing: a real leak, such as file sizes that differ by design, is far above."""
    blind = [row for row in measured["twins"] if row["blind"]]
    assert len(blind) > 30
    allowed = 4 * np.sqrt(0.25 / (2 * TEST_SETS))
    found = [(row["probe"], row["twins"], row["value"]) for row in blind if abs(row["value"] - 0.5) > allowed]
    assert found == []


def test_a_bag_of_frames_cannot_tell_a_reversal(by_pair):
    for twins in (pair(45, 43), pair(109, 47)):
        assert by_pair[twins, "bag of frames"]["value"] == pytest.approx(0.5, abs=0.03)


def test_what_decides_a_pair_tells_it(by_pair):
    for twins, probe in ((pair(45, 43), "true flow"), (pair(18, 17), "first frame"), (pair(74, 68), "bag of frames"),
                         (pair(109, 47), "first frame"), (pair(45, 43), "oracle"), (pair(74, 68), "oracle")):
        assert by_pair[twins, probe]["value"] > 0.95


def test_groups_are_the_means_of_their_pairs(measured, by_pair):
    direction = by_pair[pair(45, 43), "first frame"]["value"]
    assert measured["ceilings"]["direction"]["first frame"]["value"] == pytest.approx(direction)
    pretence = np.mean([by_pair[pair(*p), "true flow"]["value"] for p in ((109, 47), (74, 68))])
    assert measured["ceilings"]["pretence"]["true flow"]["value"] == pytest.approx(pretence)
    assert set(measured["leaks"]["binding"]) == set(probes.LEAKS)
