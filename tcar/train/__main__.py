"""The command `python -m tcar.train`: the training that a parameter file describes, once for each of its seeds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from tcar import log, params, results
from tcar.data.ssv2 import DatasetError
from tcar.features.extraction import Ranks
from tcar.features.shards import FeatureError
from tcar.models import TCA, CheckpointError
from tcar.params import ParameterError, Params
from tcar.results import ResultError
from tcar.stages.clips import class_names, healthy_clips
from tcar.stages.features import stores
from tcar.stages.fusion import fusion_config
from tcar.stages.model import card_facts, model_config, write_calibration
from tcar.tokens import TrainingError
from tcar.train.clip_tasks import BaselineTask, StreamTask
from tcar.train.heads import Fit
from tcar.train.tasks import StoredTokens, Task, TokenTask
from tcar.train.tracking import watchers
from tcar.train.trainer import Trained, train

SPLITS = ("train", "validation")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 2 for a request that cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m tcar.train", description=__doc__)
    parser.add_argument("params", type=Path, help="a parameter file, such as params/ssv2.yaml")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="parameters that differ from the file's")
    parser.add_argument("--other-code", action="store_true", help="go on with a training that other code has begun")
    asked = parser.parse_args(arguments)
    first = Ranks.here().rank == 0
    log.configure("INFO" if first else "WARNING")
    try:
        changes = dict(map(_change, asked.changes))
        params.refuse_secrets(changes, "the command line")
        run = params.load(asked.params, **changes)
        for seed in run.training.seeds:
            task = task_of(run, seed)
            folder = training_folder(run, task, seed)
            following = watchers(run.watching, folder) if first else ()
            found = train(task, run, folder, seed, following, results.revision(run.root), asked.other_code)
            if first:
                if found.best_epoch:
                    _save(run, task, found, folder, seed)
                print(f"{task.name}, seed {seed}: {found.reason}; {_outcome(found)}; in {folder}")
    except (TrainingError, FeatureError, DatasetError, ParameterError, ResultError, CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def task_of(run: Params, seed: int) -> Task:
    """Return what the parameters say is trained; raises an error of tcar's where it is not there, with the fix.

    Clips and class names are as the audit left them (notebook 00), tokens as the extraction did (notebook 01).
    """
    clips, names = healthy_clips(run), class_names(run)
    found = {split: clips[split] for split in SPLITS}
    if run.trainer.task == "clips":
        return StreamTask(found, names, run, seed)
    if run.trainer.task == "baseline":
        return BaselineTask(run.baselines.baselines[0], found, names, run, seed)
    opened = stores(run)
    tokens = [StoredTokens.of(opened["semantic"], opened["motion"], found[split], names) for split in SPLITS]
    return TokenTask(fusion_config(run), *tokens, run, seed)


def training_folder(run: Params, task: Task, seed: int) -> Path:
    """Return where a training is kept: checkpoints, best weights, what the trackers write, and the model."""
    return run.run_dir / "trainings" / f"{task.name.replace(' ', '-')}-on-{run.trainer.task}-seed{seed}"


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ParameterError(f"{text!r} is not of the form key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ParameterError(f"{text!r}: {value!r} is not a value as YAML has it") from None


def _outcome(found: Trained) -> str:
    best = next((row for row in found.history if row["epoch"] == found.best_epoch), None)
    if best is None:
        return "no epoch was validated"
    return f"best of {len(found.history)} epochs is {found.best_epoch}, validation top-1 {best['validation_top1']:.4f}"


def _save(run: Params, task: Task, found: Trained, folder: Path, seed: int) -> None:
    """Keep the model of the best epoch as one that opens by itself, with its temperature, where its kind has such a
    form.
    """
    if isinstance(task, TokenTask):
        model = TCA.create(model_config(run, task.fusion), pretrained=True, **run.stream_checkpoints)
        state = {name.removeprefix("fusion."): value for name, value in found.state_dict.items()}
        model.fusion.load_state_dict({name: state[name] for name in model.fusion.state_dict()})
    else:
        built = task.build(seed)
        built.load_state_dict(found.state_dict, strict=False)
        model = built.tca if isinstance(task, StreamTask) else built
    if isinstance(model, TCA):
        fit = Fit(model.config.fusion, seed, found.history, found.best_epoch, found.state_dict, 0.0)
        model.save_pretrained(folder / "model", card=card_facts(run, fit))
        if found.calibration:
            write_calibration(folder / "model", found.calibration)
    elif hasattr(model, "save_pretrained"):
        model.save_pretrained(folder / "model")


if __name__ == "__main__":
    sys.exit(main())
