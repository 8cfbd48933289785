"""How many clips and classes the dataset of a run has or will have."""

from tcar.data.ssv2 import SPLITS, DatasetError, load_labels, load_split
from tcar.lab.params import Params
from tcar.lab.real_plans import CLASSES
from tcar.tabletop.dataset import chosen_families, plan_sets
from tcar.tabletop.settings import FAMILIES

PUBLISHED = {"train": 168_913, "validation": 24_777, "test": 27_157}  # clips of the real dataset


def class_count(run: Params) -> int:
    """How many classes the dataset of a run has or will have."""
    if run.data.dataset == "tabletop":
        return len(run.tabletop.classes) or sum(map(len, FAMILIES.values()))
    try:
        return len(load_labels(run.data_root))
    except DatasetError:
        return CLASSES


def clips(run: Params) -> dict[str, int]:
    """How many clips each split of the dataset has or will have; of what is not there, as many as were published."""
    drawn = run.tabletop
    if run.data.dataset == "tabletop":
        counts = dict(zip(SPLITS, (drawn.train_sets, drawn.validation_sets, drawn.test_sets), strict=True))
        sets = plan_sets(chosen_families(list(drawn.classes)), counts, run.common.seed, drawn.train_sets_by_family)
        return {split: sum(len(made.ids) for made in sets if made.split == split) for split in SPLITS}
    try:
        return {split: len(load_split(run.data_root, split)) for split in SPLITS}
    except DatasetError:
        return PUBLISHED
