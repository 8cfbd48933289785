"""The clips of a run, without those that the audit has quarantined: their classes, groups and sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tcar.data.audit import load_quarantine
from tcar.data.ssv2 import SPLITS, Clip, DatasetError, load_split
from tcar.lab import results
from tcar.lab.steps.audit import monitored

if TYPE_CHECKING:
    from tcar.lab.params import Params


def healthy_clips(run: Params, *splits: str) -> dict[str, list[Clip]]:
    """Read the clips of splits, all by default, that no audit quarantined and whose class is known.

    Those of notebook 00 count, and those of a later `tcar audit` of the run.
    Raises ResultError before the audit has run, DatasetError where a split has no clip with a known class.
    """
    quarantined = {clip["id"] for clip in results.load(run.results_dir / "audit.json")["quarantined"]}
    if (later := monitored(run) / "quarantine.json").is_file():
        quarantined |= load_quarantine(later).keys()
    listed = {split: load_split(run.data_root, split) for split in splits or SPLITS}
    healthy = {split: [clip for clip in found if clip.id not in quarantined] for split, found in listed.items()}
    known = {split: [clip for clip in found if clip.label is not None] for split, found in healthy.items()}
    for split, found in known.items():
        if not found:
            raise DatasetError(
                f"{run.data_root}: no clip of {split} has a known class; the answers of test belong "
                "in test-answers.csv (id;template)"
            )
    return known


def rotated_clips(run: Params) -> int:
    """Count the clips that the audit of notebook 00 found to be turned or mirrored by their files; 0 before any."""
    audited_already = (path := run.results_dir / "audit.json").is_file()
    return results.load(path).get("rotated", 0) if audited_already else 0


def class_names(run: Params) -> list[str]:
    """Give the class names as the audit found them, in the order of their index."""
    return results.load(run.results_dir / "audit.json")["classes"]


def ground_truth(run: Params) -> dict[str, dict]:
    """Give Tabletop's index of clips (group, set, twin), or nothing for a dataset without one."""
    if run.data.dataset != "tabletop":
        return {}
    from tcar.tabletop.dataset import load_index

    return load_index(run.data_root)


def class_groups(run: Params) -> list[str] | None:
    """Give each class's group in the order of the classes, or None for a dataset without groups."""
    group_of = {entry["class"]: entry["group"] for entry in ground_truth(run).values()}
    return [group_of[name] for name in class_names(run)] if group_of else None


def one_per_class(found: list[Clip], count: int) -> list[Clip]:
    """Choose the first clip of each class, the classes in the order of their index; at most `count` of them.

    Fewer clips than classes are spread over the classes.
    """
    first: dict[int, Clip] = {}
    for clip in found:
        first.setdefault(clip.label, clip)
    labels = sorted(first)
    chosen = np.linspace(0, len(labels) - 1, min(count, len(labels))).round().astype(int)
    return [first[labels[index]] for index in chosen]
