"""The ceilings and leaks of a generated set are where theory puts them."""

import numpy as np
import pytest

from tcar.tabletop import probes
from tcar.tabletop.dataset import render_dataset
from tcar.tabletop.family import GROUPS
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.templates import FAMILIES, LABELS

CLASSES = [42, 40, 114, 146, 45, 43, 38, 39, 109, 47, 74, 68, 18, 17]
TEST_SETS = 24


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("tabletop")
    counts = {"train_sets": 24, "validation_sets": 1, "test_sets": TEST_SETS}
    drawn = TabletopSettings(classes=CLASSES, **counts, lengths=[16, 24])
    render_dataset(root, drawn, seed=3)
    return probes.measure(root, trees=100)


@pytest.fixture(scope="module")
def by_pair(measured):
    return {(tuple(row["twins"]), row["probe"]): row for row in measured["twins"]}


def pair(*indices: int) -> tuple[str, ...]:
    return tuple(LABELS[index] for index in indices)


def test_every_pair_says_what_tells_its_twins_and_what_cannot():
    known = {*probes.CEILINGS, *probes.LEAKS}
    for pair in (pair for family in FAMILIES.values() for pair in family.pairs):
        assert pair.blind | pair.sufficient <= known and not pair.blind & pair.sufficient
        assert pair.sufficient and "oracle" not in pair.blind and pair.group in GROUPS


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


def test_what_decides_a_pair_tells_it(measured, by_pair):
    decisive = [row for row in measured["twins"] if row["sufficient"]]
    assert {row["group"] for row in decisive} == set(GROUPS)
    assert [(row["probe"], row["twins"], row["value"]) for row in decisive if row["value"] < 0.9] == []
    assert all(by_pair[twins, "oracle"]["value"] > 0.9 for twins, _ in by_pair)


def test_groups_are_the_means_of_their_pairs(measured, by_pair):
    motion = by_pair[pair(45, 43), "first frame"]["value"]
    assert measured["ceilings"]["motion"]["first frame"]["value"] == pytest.approx(motion)
    bound = np.mean([by_pair[pair(*p), "ordered frames"]["value"] for p in ((42, 40), (114, 146))])
    assert measured["ceilings"]["bound"]["ordered frames"]["value"] == pytest.approx(bound)
    assert set(measured["leaks"]["bound"]) == set(probes.LEAKS)
