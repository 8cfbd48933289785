"""A parameter file of the real dataset, run from the downloads to the paper in small, before a cluster is asked for.

    python -m tcar.rehearse params/ssv2.yaml FOLDER --clips 400
    python -m tcar.rehearse params/ssv2.yaml FOLDER --clips 400 --set device=cuda --until 01_extractors

FOLDER gets an imitation of the dataset as it is downloaded (tcar.rehearsal.imitation: rendered pictures, most labels
arbitrary), weights of random values in the published layouts, and the parameter file with few epochs and all else
untouched. With it every step runs: prepare, doctor, the notebooks, the paper. What each takes of time, memory and disk
is measured and projected to the 220,847 published clips, in FOLDER/rehearsal.json. The scores mean nothing.
A call that was cut off goes on where it ended when it is given again.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
import psutil
import yaml

from tcar import files, locks, log, params, pipeline, results, room
from tcar.data.prepare import FULL_BYTES
from tcar.features.plan import PUBLISHED_CLIPS
from tcar.params import ParameterError, Params
from tcar.processes import usable_cores
from tcar.rehearsal import imitation, weights
from tcar.rehearsal.measuring import INTERVAL, Taken, measured, memory_kind, occupied, taken

EPOCHS, WARMUP = 3, 1
NOISE = 0.05  # share of a step's seconds
GIB = 2**30
MARK = "rehearsal.json"  # in the dataset's folder: it is an imitation
PREPARE, AGAIN, DOCTOR = "prepare", "prepare again", "doctor"
STEPS = (PREPARE, AGAIN, DOCTOR, *(step.name for step in (*pipeline.TABLE, pipeline.REPORT)))
CLIPS, FITS = "clips", "clips x epochs"
# What the time of a step grows with; the time of all others does not depend on the number of clips, and neither does
# that of the cells of a notebook that call none of `GROWING`.
GROWS = {PREPARE: CLIPS, "00_data_audit": CLIPS, "01_extractors": CLIPS, "03_training": FITS, "04_evaluation": CLIPS,
         "05_ablations": FITS}  # fmt: skip
GROWING = ("audited", "extract", "linear_probes", "fit_all", "train_baselines", "trained_baselines", "baseline_logits",
           "logits", "save_model")  # fmt: skip


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal in its folder: the parameters as given and as rehearsed, and what was reduced, in words."""

    folder: Path
    clips: int
    seed: int
    whole: Params
    run: Params
    reduced: tuple[str, ...]

    @property
    def params_file(self) -> Path:
        """The parameter file that runs."""
        return self.folder / f"{self.run.common.name}.yaml"

    def notes(self, step: str) -> Path:
        """Where it is kept what a step has taken."""
        return self.folder / "measured" / f"{step.replace(' ', '-')}.json"


def begin(file: Path, folder: Path, clips: int, seed: int, changes: Mapping[str, Any]) -> Rehearsal:
    """Write the imitation and the parameter file into `folder`, or open what is there of the same rehearsal.

    Raises ParameterError: a wrong parameter or change, another rehearsal in the folder, a stream that is not imitated.
    """
    given = params.overlaid(params.read_yaml(file), changes)
    whole = params.from_values(given, source=str(file))
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
    values = {**given, **own, **short}
    run = params.from_values(values, source=str(file))
    _same(folder, {"clips": clips, "seed": seed, "parameters": values})
    shown = {plan.label for plan in imitation.planned(clips, seed) if plan.split == "train"}
    reduced = (
        f"{clips:,} clips of {PUBLISHED_CLIPS:,}, {len(shown)} of {imitation.CLASSES} classes among those of training",
        "pictures: rendered; labels: arbitrary but for the 32 classes that Tabletop draws",
        f"weights: random, {', '.join(weights.imitate(run, seed)) or 'but for the streams of the package'}",
        *(f"{key}: {value}, not {whole.as_dict()[key]}" for key, value in short.items()
          if value != whole.as_dict()[key]),
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
    results.write(run.data_root / MARK, {"clips": rehearsal.clips, "reduced": rehearsal.reduced})
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


def row(rehearsal: Rehearsal, name: str) -> dict[str, Any]:
    """What a step has taken, and what follows from it for the published dataset; bytes and seconds.

    What grows is multiplied, what is fixed is not. Tokens and videos are counted instead: their bytes are known.
    """
    found, grows = taken(rehearsal.notes(name)), GROWS.get(name, "")
    share = PUBLISHED_CLIPS / rehearsal.clips
    factor = {CLIPS: share, FITS: share * epochs(rehearsal.whole) / epochs(rehearsal.run), "": 1.0}[grows]
    growing = growing_seconds(rehearsal, name, found) if grows else 0.0
    told = not grows or growing > NOISE * found.seconds  # else it was too short to be told from its start
    disk, passing = found.disk, max(0, found.most - found.disk)
    if name == PREPARE:
        disk = FULL_BYTES
    elif name == "00_data_audit":
        disk += round(occupied(rehearsal.run.run_dir / "audit") * (share - 1))
    elif name == "01_extractors":
        disk += tokens(rehearsal.whole, PUBLISHED_CLIPS) - tokens(rehearsal.run, rehearsal.clips)
    return {
        "step": name,
        **asdict(found),
        "passing": passing,
        "grows_with": grows,
        "projected": {
            "seconds": found.seconds - growing + growing * factor if told else None,
            "memory": found.memory,
            "disk": disk,
            "passing": round(passing * share) if grows == CLIPS else passing,
        },
    }


def epochs(run: Params) -> int:
    """The epochs of all methods together."""
    return sum(run.training.epochs_by_method.get(method, run.training.epochs) for method in run.training.methods)


def tokens(run: Params, clips: int) -> int:
    """The bytes of the tokens of so many clips."""
    nowhere = replace(run, data=replace(run.data, data_root="/nonexistent"))
    return room.tokens(nowhere) * clips // PUBLISHED_CLIPS


def growing_seconds(rehearsal: Rehearsal, name: str, found: Taken) -> float:
    """The seconds of a step that grow with the dataset: of all attempts, what the rest of one does not explain."""
    if name == PREPARE:  # the second call finds all done
        return max(0.0, found.seconds - found.attempts * taken(rehearsal.notes(AGAIN)).seconds)
    cells = nbformat.read(rehearsal.run.run_dir / "notebooks" / f"{name}.ipynb", as_version=4).cells
    growing = sum(cell.metadata.papermill.duration or 0 for cell in cells if grows(cell))
    return max(growing, found.seconds - found.attempts * (found.last - growing))


def grows(cell: Mapping[str, Any]) -> bool:
    """Whether a cell of a notebook takes longer with more clips."""
    return cell["cell_type"] == "code" and any(f"{name}(" in cell["source"] for name in GROWING)


def text(rows: list[dict[str, Any]], reduced: tuple[str, ...]) -> str:
    """The table for people, with what was reduced and how the projection comes about."""
    head = f"{'':22}{'tries':>6}{'hours':>9}{'GiB':>7}{'disk GB':>9}{'passing':>9}"
    head += f" |{'hours':>9}{'disk GB':>9}{'passing':>9}"
    lines = ["Reduced: " + "; ".join(reduced), "", f"{'':54}measured | projected", head]
    for one in rows:
        ahead = one["projected"]
        hours = "?" if ahead["seconds"] is None else f"{ahead['seconds'] / 3600:.2f}"
        lines.append(
            f"{one['step']:22}{one['attempts']:6}{one['seconds'] / 3600:9.3f}{one['memory'] / GIB:7.2f}"
            f"{one['disk'] / 1e9:9.3f}{one['passing'] / 1e9:9.3f} |{hours:>9}"
            f"{ahead['disk'] / 1e9:9.2f}{ahead['passing'] / 1e9:9.2f}  {one['grows_with'] or 'fixed'}"
        )
    hours, disk = (sum(one["projected"][key] or 0 for one in rows) for key in ("seconds", "disk"))
    untold = [one["step"] for one in rows if one["projected"]["seconds"] is None]
    return "\n".join([
        *lines, "",
        f"Projected to {PUBLISHED_CLIPS:,} clips on this machine, which nobody measured: {hours / 3600:,.1f} hours"
        f"{' without ' + ', '.join(untold) + ', too short here to be told' if untold else ''}, "
        f"{disk / 1e9:,.0f} GB left on the disk; memory as measured, "
        f"at most {max(one['memory'] for one in rows) / GIB:.2f} GiB in a step.",
        "Hours: those cells that read clips, times the clips; trainings also times the epochs; all else as measured. "
        "What begins anew in such a cell is multiplied too, so few clips make the hours too many.",
        "Disk: videos as published, tokens by their shape (tcar.room), findings of the audit times the clips.",
    ])  # fmt: skip


def _change(given: str) -> tuple[str, Any]:
    key, equals, value = given.partition("=")
    if not equals:
        raise ParameterError(f"--set {given}: not of the form key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ParameterError(f"--set {given}: {value!r} is not a value as YAML has it") from None


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
        changes = dict(map(_change, asked.set))
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
