"""A rehearsal: the steps of a run on an imitation of the real dataset, each measured; what was cut off goes on."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from tcar.ground import files, locks
from tcar.ground.processes import usable_cores
from tcar.lab import params, pipeline, results
from tcar.lab.doctor.fitness import SOCKET
from tcar.lab.params import ParameterError
from tcar.lab.real_plans import ALL_CLIPS, CLASSES
from tcar.lab.rehearsal import imitation, weights
from tcar.lab.rehearsal.measuring import INTERVAL, memory_kind, run_measured, taken
from tcar.lab.rehearsal.projection import AGAIN, PREPARE, STEPS, Rehearsal, row, text
from tcar.lab.steps.fits import device_of

EPOCHS, WARMUP = 3, 1
SHORT = ("epochs", "epochs_by_method", "warmup_epochs", "precision")  # what a rehearsal has of its own, or is given


def begin(file: Path, folder: Path, clips: int, seed: int, changes: Mapping[str, Any]) -> Rehearsal:
    """Write the imitation and the parameter file into `folder`, or open what is there of the same rehearsal.

    Raises ParameterError: a wrong parameter or change, another rehearsal in the folder, a stream that is not imitated.
    """
    asked = params.read_yaml(file)
    given = params.overlaid(asked, changes)
    kept = {key: value for key, value in changes.items() if key not in SHORT}
    whole = params.from_values(params.overlaid(asked, kept), source=str(file))
    if whole.data.dataset != "ssv2":
        raise ParameterError(f"{file}: dataset is {whole.data.dataset!r}; a rehearsal is for `dataset: ssv2`, all "
                             "others run as they are")  # fmt: skip
    own = {
        "name": f"{whole.common.name}-rehearsal", "runs": str(folder / "runs"), "figures": str(folder / "figures"),
        "publish": False, "data_root": str(folder / "data"),
    }  # fmt: skip
    for key in ("semantic_checkpoint", "motion_checkpoint"):
        if stated := given.get(key):
            own[key] = str(folder / "checkpoints" / Path(stated).name)
    if "epochs" not in changes:
        own |= {"epochs": EPOCHS, "epochs_by_method": {}}
    if "warmup_epochs" not in changes:
        own["warmup_epochs"] = min(WARMUP, whole.training.warmup_epochs)
    if "precision" not in changes and device_of(whole).type == "cpu":
        own["precision"] = "fp32"  # most CPUs compute in 16 bits at a tenth of the speed
    values = {**given, **own}
    run = params.from_values(values, source=str(file))
    _claim(folder, {"clips": clips, "seed": seed, "parameters": values})
    shown = {planned.label for planned in imitation.planned(clips, seed) if planned.split == "train"}
    short, full = run.as_dict(), whole.as_dict()
    reduced = (
        f"{clips:,} clips of {ALL_CLIPS:,}, {len(shown)} of {CLASSES} classes among those of training",
        "pictures: rendered; labels: arbitrary but for the 34 classes that Tabletop draws",
        f"weights: random, {', '.join(weights.imitate(run, seed)) or 'but for the streams of the package'}",
        *(f"{key}: {short[key]}, not {full[key]}" for key in SHORT if short[key] != full[key]),
    )
    rehearsal = Rehearsal(folder, clips, seed, whole, run, reduced)
    files.write_text(rehearsal.params_file, yaml.safe_dump(values, sort_keys=False))
    return rehearsal


def _claim(folder: Path, asked: dict[str, Any]) -> None:
    """Mark the folder as that of this rehearsal; raises ParameterError where it holds another."""
    marker = folder / "rehearsed.json"
    if marker.is_file() and results.load(marker) != json.loads(json.dumps(asked)):
        raise ParameterError(f"{folder}: holds another rehearsal (see {marker.name}); give the same "
                             "parameters and --clips, or another folder")  # fmt: skip
    results.write(marker, asked)


def perform(rehearsal: Rehearsal, until: str) -> int:
    """Run what is left of the steps up to one of them, and keep what each has taken; returns an exit status."""
    folder, run, file = rehearsal.folder, rehearsal.run, str(rehearsal.params_file)
    imitation.downloads(folder / "downloads", rehearsal.clips, rehearsal.seed, run.workers)
    run.data_root.mkdir(exist_ok=True)
    # What is said of the dataset, in figures and paper, follows from this file.
    results.write(run.data_root / params.REHEARSAL, {"clips": rehearsal.clips, "reduced": rehearsal.reduced})
    table = {step.name: step for step in pipeline.STEPS}
    for name in STEPS[: STEPS.index(until) + 1]:
        notes, step = rehearsal.notes(name), table.get(name)
        if taken(notes).finished:
            if step is None or not pipeline.reasons(step, run, pipeline.fingerprint(step, run)):
                continue
            notes.unlink()  # its code has changed since: it is measured anew
        if name in (PREPARE, AGAIN):
            arguments = ["prepare", str(folder / "downloads"), str(run.data_root)]
        else:
            arguments = ["paper", file, "--only", name] if step else [name, file]
        print(f"== {name}", flush=True)
        if status := run_measured("tcar.__main__", arguments, folder, notes):
            print(f"error: {name} ended with status {status}; the same command goes on there", file=sys.stderr)
            return 1
        write(rehearsal)
    return 0


def write(rehearsal: Rehearsal) -> list[dict[str, Any]]:
    """Write rehearsal.json of what has been measured so far; returns its rows."""
    rows = [row(rehearsal, name) for name in STEPS if taken(rehearsal.notes(name)).finished]
    memory, device = psutil.virtual_memory().total, rehearsal.run.common.device
    values = {
        "reduced": rehearsal.reduced,
        "machine": {"cores": usable_cores(), "memory": memory, "device": device},
        "memory_is": f"{memory_kind()} of all processes of a step together, looked at every {INTERVAL:g} s",
        "projected_to": {"clips": ALL_CLIPS, "epochs": rehearsal.whole.training.epochs},
        "steps": rows,
    }
    results.save(rehearsal.folder / "rehearsal.json", values, params=rehearsal.run, seeds=[rehearsal.seed])
    return rows


def rehearse(
    file: Path, folder: Path, *, clips: int, seed: int, changes: Mapping[str, Any], until: str = STEPS[-1]
) -> int:
    """Rehearse a parameter file in a folder, up to a step, and print what it took; gives the exit status.

    Raises ParameterError: a wrong parameter, another rehearsal in the folder or at work there.
    """
    folder = folder.resolve()
    scratch = folder / "tmp"
    if len(str(scratch)) > SOCKET:
        raise ParameterError(f"{folder}: too long a path for the sockets of temporary files in it; at most "
                             f"{SOCKET - 4} characters")  # fmt: skip
    params.refuse_secrets(changes, "the command line")
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(scratch)  # so that what passes through it is counted
    busy = f"{folder}: another rehearsal is going on there; wait for it or end it"
    with locks.alone(folder / locks.FILE, ParameterError, busy):
        rehearsal = begin(file, folder, clips, seed, changes)
        print("Reduced: " + "; ".join(rehearsal.reduced), flush=True)
        status = perform(rehearsal, until)
        print(text(write(rehearsal), rehearsal.reduced))
        return status
