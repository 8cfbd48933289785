"""A parameter file of the real dataset, run from the downloads to the paper in small, before a cluster is asked for.

    python -m tcar.rehearse params/ssv2.yaml FOLDER --clips 400
    python -m tcar.rehearse params/ssv2.yaml FOLDER --clips 400 --set device=cuda --until 01_extractors

FOLDER gets an imitation of the dataset as it is downloaded (tcar.rehearsal.imitation: rendered pictures, most labels
arbitrary), weights of random values in the published layouts, and the parameter file with few epochs (on a CPU in fp32)
and all else untouched. With it every step runs: prepare, doctor, the notebooks, the paper. What each takes of time,
memory and disk is measured and projected to the 220,847 published clips, in FOLDER/rehearsal.json. The scores mean
nothing. A call that was cut off goes on where it ended when it is given again.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from tcar import files, locks, log, params, pipeline, results, room
from tcar.features.plan import PUBLISHED_CLIPS
from tcar.params import ParameterError
from tcar.processes import usable_cores
from tcar.rehearsal import imitation, weights
from tcar.rehearsal.measuring import INTERVAL, measured, memory_kind, taken
from tcar.rehearsal.projection import AGAIN, PREPARE, STEPS, Rehearsal, row, text
from tcar.stages.trainings import device_of

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
    short = {} if "epochs" in changes else {"epochs": EPOCHS, "epochs_by_method": {}}
    if "warmup_epochs" not in changes:
        short["warmup_epochs"] = min(WARMUP, whole.training.warmup_epochs)
    if "precision" not in changes and device_of(whole).type == "cpu":
        short["precision"] = "fp32"  # most CPUs compute in 16 bits at a tenth of the speed
    values = {**given, **own, **short}
    run = params.from_values(values, source=str(file))
    _same(folder, {"clips": clips, "seed": seed, "parameters": values})
    shown = {plan.label for plan in imitation.planned(clips, seed) if plan.split == "train"}
    reduced = (
        f"{clips:,} clips of {PUBLISHED_CLIPS:,}, {len(shown)} of {imitation.CLASSES} classes among those of training",
        "pictures: rendered; labels: arbitrary but for the 32 classes that Tabletop draws",
        f"weights: random, {', '.join(weights.imitate(run, seed)) or 'but for the streams of the package'}",
        *(f"{key}: {run.as_dict()[key]}, not {whole.as_dict()[key]}" for key in SHORT
          if run.as_dict()[key] != whole.as_dict()[key]),
    )  # fmt: skip
    files.write_text(folder / f"{run.common.name}.yaml", yaml.safe_dump(values, sort_keys=False))
    return Rehearsal(folder, clips, seed, whole, run, reduced)


def _same(folder: Path, asked: dict[str, Any]) -> None:
    """Raise ParameterError where the folder holds another rehearsal; else mark it as that of this one."""
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
    prepare = ("tcar.data.prepare", [str(folder / "downloads"), str(run.data_root)])
    table = {step.name: step for step in (*pipeline.TABLE, pipeline.REPORT)}
    for name in STEPS[: STEPS.index(until) + 1]:
        notes = rehearsal.notes(name)
        if taken(notes).finished:
            if name not in table or not pipeline.reasons(table[name], run, pipeline.fingerprint(table[name], run)):
                continue
            notes.unlink()  # its code has changed since: it is measured anew
        module, arguments = prepare if name in (PREPARE, AGAIN) else ("tcar.doctor", [file])
        if name in table:
            module, arguments = "tcar.pipeline", [file, "--only", name]
        print(f"== {name}", flush=True)
        if status := measured(module, arguments, folder, notes):
            print(f"error: {name} ended with status {status}; the same command goes on there", file=sys.stderr)
            return 1
        write(rehearsal)
    return 0


def write(rehearsal: Rehearsal) -> list[dict[str, Any]]:
    """Write rehearsal.json of what has been measured so far; returns its rows."""
    rows = [row(rehearsal, name) for name in STEPS if taken(rehearsal.notes(name)).finished]
    values = {
        "reduced": rehearsal.reduced,
        "machine": {
            "cores": usable_cores(), "memory": psutil.virtual_memory().total, "device": rehearsal.run.common.device,
        },
        "memory_is": f"{memory_kind()} of all processes of a step together, looked at every {INTERVAL:g} s",
        "projected_to": {"clips": PUBLISHED_CLIPS, "epochs": rehearsal.whole.training.epochs},
        "steps": rows,
    }  # fmt: skip
    results.save(rehearsal.folder / "rehearsal.json", values, params=rehearsal.run, seeds=[rehearsal.seed])
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command: 0 when all is done, 1 when a step failed, 2 for a request that cannot be met, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tcar.rehearse", description=__doc__.split("\n")[0])
    parser.add_argument("params", type=Path, help="a parameter file, such as params/ssv2.yaml")
    parser.add_argument("folder", type=Path, help="everything is written there")
    parser.add_argument("--clips", type=int, default=400, help="of all splits together; 230 show every class")
    parser.add_argument("--seed", type=int, default=0, help="of the imitation")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="another parameter; repeatable")
    parser.add_argument("--until", choices=STEPS, default=STEPS[-1], help="the last step to run")
    asked = parser.parse_args(arguments)
    log.configure()
    folder = asked.folder.resolve()
    scratch = folder / "tmp"
    try:
        if len(str(scratch)) > room.SOCKET:
            raise ParameterError(f"{folder}: too long a path for the sockets of temporary files in it; at most "
                                 f"{room.SOCKET - 4} characters")  # fmt: skip
        changes = params.changes(asked.set)
        params.refuse_secrets(changes, "the command line")
        scratch.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(scratch)  # so that what passes through it is counted
        busy = f"{folder}: another rehearsal is going on there; wait for it or end it"
        with locks.alone(folder / locks.FILE, ParameterError, busy):
            rehearsal = begin(asked.params, folder, asked.clips, asked.seed, changes)
            print("Reduced: " + "; ".join(rehearsal.reduced), flush=True)
            status = perform(rehearsal, asked.until)
            print(text(write(rehearsal), rehearsal.reduced))
            return status
    except (ParameterError, results.ResultError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
