"""Notebook 00: the dataset of a run, rendered or found, and the audit of its clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tcar.data import second_opinion as opinion
from tcar.data.audit import audit
from tcar.data.health import ClipHealth, read_journal
from tcar.data.monitor import monitor
from tcar.data.ssv2 import Clip, load_labels

if TYPE_CHECKING:
    from tcar.lab.params import Params


def dataset_folder(run: Params) -> Path:
    """Render Tabletop where it is asked for, and give the folder of the dataset; raises DatasetError without one."""
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
