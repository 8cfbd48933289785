"""Whether a parameter file can run on this machine: device, memory, disks, budget, dataset, weights, and its hours.

What is heavy is imported where it is used, so that the report says what of it is broken.
"""

import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from tcar.lab import results
from tcar.lab.doctor.finding import FAULT, OK, REMARK, Finding, in_words, judged
from tcar.lab.doctor.installation import existing, unwritable
from tcar.lab.params import Params
from tcar.lab.rehearsal.measuring import occupied

FETCH = "run `tcar fetch` with this parameter file: it fetches it, or says how to by hand"
REST = 10**9  # bytes of a run for what is not counted: notebooks, figures, results and logs
PASSING = 64 * 2**20  # bytes of temporary files: no step copies tokens
SOCKET = 108 - 33  # characters of a path that leave room for the name of a socket, as multiprocessing makes it


def check_machine(run: Params) -> Iterator[Finding]:
    """Cores, and the device that the parameters name."""
    import torch

    yield Finding("CPU", OK, f"{os.cpu_count()} cores, {run.workers} workers, {platform.machine()}")
    kind, _, number = run.common.device.partition(":")
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind in there and int(number or 0) >= there[kind]:
        fix = "set device to auto, which takes what there is, or to cpu"
        yield Finding("device", FAULT, f"device is {run.common.device}, and {there[kind]} such are found", fix)
    on_cpu = kind == "cpu" or (kind == "auto" and not any(there.values()))
    if on_cpu and run.trainer.precision == "fp16":
        yield Finding("precision", FAULT, "precision is fp16, which a CPU does not train in", "set it to bf16 or fp32")


def check_memory(run: Params) -> Iterator[Finding]:
    """The peaks of memory that sizes of weights, layers and batches let expect, beside what there is."""
    import torch

    from tcar.lab.demand import sizes

    total, card = psutil.virtual_memory().total, 0
    if torch.cuda.is_available() and run.common.device.partition(":")[0] in ("auto", "cuda"):
        card = torch.cuda.get_device_properties(torch.device(run.common.device.replace("auto", "cuda"))).total_memory
    for peak in sizes.memory(run, bool(card)):
        detail = f"about {in_words(peak.host)} of {in_words(total)}"
        detail += f", and {in_words(peak.device)} of {in_words(card)} of the GPU" if card else ""
        fine = peak.host <= total and peak.device <= card
        yield judged(f"memory, {peak.work}", fine, f"{detail}; {peak.about}", peak.fix)


def check_fusions(run: Params) -> Iterator[Finding]:
    """Every configuration that is trained: that it can be made, within its budget."""
    from tcar.lab.demand import sizes

    planned, allowed = sizes.trainings(run), run.fusion.max_trained_parameters
    largest = max(planned, key=lambda each: each.parameters)
    detail = f"{len(planned)} configurations, up to {largest.parameters:,} trained parameters ({largest.fusion.method})"
    fine = largest.parameters <= allowed
    fix = "lower fusion_width, cross_width, fusion_blocks or mlp_ratio, or raise max_trained_parameters"
    yield judged("fusions", fine, detail if fine else f"{detail}, max_trained_parameters is {allowed:,}", fix)


def check_hours(run: Params, measure: bool) -> Iterator[Finding]:
    """How long extraction and training take, from measured speeds."""
    from tcar.lab.demand import hours

    for found in hours.hours(run, measure=measure):
        amount = "not known" if found.hours is None else f"{found.hours:.2g} hours"
        yield Finding(f"hours, {found.work}", OK, f"{amount}: {found.source}")


def check_watching(run: Params) -> Iterator[Finding]:
    """The libraries and the address that a training is told to report to."""
    for tracker in sorted({*run.watching.trackers} - {"csv"}):
        if importlib.util.find_spec(tracker) is None:
            fix = f"leave {tracker} out of trackers, or `pip install {tracker}`"
            yield Finding("trackers", FAULT, f"trackers names {tracker}, which is not installed", fix)
    variable = run.watching.webhook.removeprefix("$")
    if run.watching.webhook.startswith("$") and not re.match(r"https?://", os.environ.get(variable, "")):
        fix = f"export {variable} with the address, or set webhook to nothing"
        yield Finding("webhook", FAULT, f"webhook is ${variable}, which holds no http(s) address", fix)


def check_disks(run: Params) -> Iterator[Finding]:
    """The disks that the run and its temporary files go to, with what is needed of them and what is free."""
    from tcar.lab.demand import sizes

    try:
        whole = sizes.disk(run)
    except ValueError as error:  # of a stream or a class: named by what checks these
        yield Finding("disk", REMARK, f"how much is needed is not known: {error}", "correct it in the parameter file")
    else:
        left = {name: max(0, size - occupied(run.run_dir / name)) for name, size in whole.items() if size}
        words = ", ".join(f"{size / 1e9:.1f} GB of {name}" for name, size in left.items() if size >= 5e7)
        fix = f"this run still writes {words + ' and ' if words else ''}about {REST / 1e9:.0f} GB of results: "
        fix += "free some, or set `runs:` to a folder on another disk"
        yield _room("disk", run.run_dir, sum(left.values()) + REST, fix)
    if problem := unwritable(run.figures_dir):
        yield Finding("figures", FAULT, problem, "set figures to a folder that can be written")
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Finding("temporary files", FAULT, str(error), "set TMPDIR to a folder that can be written")
        return
    fix = "set TMPDIR to a folder on a larger disk"
    yield _room("temporary files", folder, PASSING, fix)
    asked = os.environ.get("TMPDIR", "")
    if asked and Path(asked).resolve() != folder.resolve():
        yield Finding("TMPDIR", REMARK, f"{asked} cannot be written, so {folder} is used", fix)
    elif len(str(folder)) > SOCKET:
        long = f"{folder} is {len(str(folder))} characters long, and sockets in it may have no name"
        yield Finding("TMPDIR", REMARK, long, f"set TMPDIR to a folder of at most {SOCKET} characters")


def _room(subject: str, folder: Path, needed: int, fix: str) -> Finding:
    if problem := unwritable(folder):
        return Finding(subject, FAULT, problem, fix)
    free = shutil.disk_usage(existing(folder)).free
    return judged(subject, free >= needed, f"{in_words(needed)} needed, {in_words(free)} free in {folder}", fix)


def check_dataset(run: Params) -> Iterator[Finding]:
    """The dataset of the parameter file: its labels and its videos."""
    root = run.data_root
    if run.data.dataset == "tabletop":
        there = (root / "labels.json").is_file()
        yield Finding("dataset", OK, f"Tabletop{f' in {root}' if there else ', rendered by the first notebook'}")
        return
    from tcar.data import prepare
    from tcar.data.ssv2 import SPLITS, DatasetError, load_split

    make = f"`tcar prepare DOWNLOADS {root}`"
    try:
        found = prepare.inspect(root)
    except DatasetError as error:
        yield Finding("dataset", FAULT, str(error), f"{make} makes the folder of what was downloaded")
        return
    for split in SPLITS:
        if not any(clip.label is not None for clip in load_split(root, split)):
            fix = "put test-answers.csv (id;template) there" if split == "test" else f"get the whole {split}.json"
            yield Finding(f"{split} split", FAULT, f"{root}: no clip of {split} has a known class", fix)
    listed, missing = sum(found.listed.values()), len(found.missing)
    reported = (root / prepare.REPORT).is_file()
    begun = reported or (root / prepare.LOCK).exists()
    cut_off = begun and (bool(found.unread) or not reported)
    problem = f", {missing:,} missing" if missing else ""
    if cut_off:
        problem += f", cut off midway: {found.unread or 'prepare'} has not come to its end"
        fix = f"{make}, with the same folder of downloads, goes on where it ended"
    elif begun:
        fix = f"{prepare.REPORT} there names them; get what is lacking, then {make} goes on"
    else:
        problem += ", never prepared"
        fix = f"unpack what is lacking into videos/ there, or let {make} do it"
    # As the audit judges it, for which a missing video is a broken one.
    state = FAULT if missing > run.data.quarantine_threshold * listed else REMARK if missing or cut_off else OK
    detail = f"{root}: {found.videos:,} videos, {listed:,} listed{problem if state != OK else ', complete'}"
    yield Finding("dataset", state, detail, fix)


def check_checkpoints(run: Params) -> Iterator[Finding]:
    """The weights of both streams; those that are there are loaded, as nothing else shows that they fit."""
    from tcar.lab import fetch
    from tcar.streams.published import PACKAGED
    from tcar.streams.registry import create_stream
    from tcar.streams.weights import CheckpointError

    for role in ("semantic", "motion"):
        name, stated = getattr(run.streams, role), getattr(run.streams, f"{role}_checkpoint")
        subject, path = f"{role} stream", run.root / Path(stated).expanduser()
        packaged = name in PACKAGED and not stated
        where = "weights of the package" if packaged else results.relative(path, run.root)
        fix = "run `make streams`" if packaged else f"set {role}_checkpoint to a file or a name of the Hub; {FETCH}"
        try:
            if packaged or (stated and path.exists()):
                create_stream(name, pretrained=True, checkpoint=path if stated else None)
                yield Finding(subject, OK, f"{name}: {where}")
                continue
            need = fetch.stream_need(run, role)
        except (CheckpointError, ValueError, OSError) as error:
            yield Finding(subject, FAULT, f"{name}: {where}: {str(error).partition(chr(10))[0]}", fix)
            continue
        there, words = fetch.state(need)
        where = f"{role}_checkpoint {stated}" if stated else need.checkpoint.name
        yield judged(subject, there, f"{name}: {where} is {words}", FETCH)


def check_baselines(run: Params) -> Iterator[Finding]:
    """The weights of the baselines, where the run has any."""
    from tcar.lab import fetch

    for need in fetch.baseline_needs(run):
        there, words = fetch.state(need)
        where = need.place(run.root) if need.target else f"{need.checkpoint.name} in {need.place(run.root)}"
        detail = f"{need.purpose.removeprefix('baseline ')}: {where} is {words}"
        if need.advice:  # left out, it would have random weights, which a run refuses
            yield Finding("baseline", FAULT, f"{detail}, and no parameter names it", f"{need.advice}; {FETCH}")
        else:
            yield judged("baseline", there, detail, FETCH)
