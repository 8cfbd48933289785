"""The clips of a run: rendered or read, without those the audit has quarantined."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tcar.data import second_opinion as opinion
from tcar.data.audit import audit, load_quarantine
from tcar.data.health import ClipHealth, read_journal
from tcar.data.monitor import monitor
from tcar.data.ssv2 import SPLITS, Clip, DatasetError, load_labels, load_split
from tcar.lab import results

if TYPE_CHECKING:
    from tcar.lab.params import Params


def dataset_folder(run: Params) -> Path:
    """Render Tabletop where it is asked for, and give the folder of the dataset; raises DatasetError
    without one.
    """
    if run.data.dataset == "tabletop":
        from tcar.tabletop.dataset import render_dataset

        render_dataset(run.data_root, run.tabletop, seed=run.common.seed, workers=run.workers)
    load_labels(run.data_root)
    return run.data_root


def audited(run: Params, clips: dict[str, list[Clip]]) -> dict[str, list[ClipHealth]]:
    """Check every clip of every split and give the findings by split, in the order of the clips.

    A dataset of one's own is followed over time in `audit/` of the run (`tcar.data.monitor`): an audit that was cut off
    goes on, and a file that has changed since is found out. Tabletop is looked at anew: it may have been rendered with
    other parameters.
    """
    if run.data.dataset == "tabletop":
        return {split: audit(listed, run.workers) for split, listed in clips.items()}
    monitor(clips, monitored(run), workers=run.workers)
    found = {name: health for name, (health, _) in read_journal(monitored(run) / "findings.jsonl").items()}
    return {split: [found[clip.id] for clip in listed] for split, listed in clips.items()}


def second_opinion(
    run: Params, clips: dict[str, list[Clip]], health: dict[str, list[ClipHealth]]
) -> dict[str, int | list[dict[str, str]]]:
    """Ask decord about clips of all splits, as `tcar.data.second_opinion` does; `health` is what `audited` gives."""
    listed, found = ([one for split in clips for one in values[split]] for values in (clips, health))
    count, upright = run.data.second_opinion_clips, run.data.upright
    return opinion.second_opinion(listed, found, count, run.common.seed, run.workers, upright)


def monitored(run: Params) -> Path:
    """Give the folder in which audits of the run's dataset are kept."""
    return run.run_dir / "audit"


def healthy_clips(run: Params, *splits: str) -> dict[str, list[Clip]]:
    """Read the clips of splits, all by default, that no audit quarantined and whose class is known.

    Those of notebook 00 count, and those of a later `tcar audit` of the run.
    Raises ResultError before the audit has run, DatasetError where a split has no clip with a known class.
    """
    quarantined = {clip["id"] for clip in results.load(run.results_dir / "audit.json")["quarantined"]}
    if (later := monitored(run) / "quarantine.json").is_file():
        quarantined |= load_quarantine(later).keys()
    listed = {split: load_split(run.data_root, split) for split in splits or SPLITS}
    healthy = {
        split: [clip for clip in found if clip.id not in quarantined] for split, found in listed.items()
    }
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
