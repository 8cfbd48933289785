"""Whether a parameter file can run on this machine: device, memory, disks, budget, dataset, weights, and its hours.

These are the checks of `tcar.lab.doctor` that read the parameters.
"""

import importlib.util
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tcar.lab import results
from tcar.lab.params import Params
from tcar.streams.packaged import WEIGHTS

OK, REMARK, FAULT = "ok", "remark", "FAULT"
FETCH = "run `tcar fetch` with this parameter file: it fetches it, or says how to by hand"
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is shown where the state is not ok."""

    subject: str
    state: str
    detail: str
    fix: str = ""


def check_machine(run: Params) -> Iterator[Finding]:
    """Cores, and the device that the parameters name."""
    import torch

    yield Finding("CPU", OK, f"{os.cpu_count()} cores, {run.workers} workers, {platform.machine()}")
    device, kind = run.common.device, run.common.device.partition(":")[0]
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    number = int(device.partition(":")[2] or 0)
    if kind in there and number >= there[kind]:
        fix = "set device to auto, which takes what there is, or to cpu"
        yield Finding("device", FAULT, f"device is {device}, and {there[kind]} such are found", fix)
    on_cpu = kind == "cpu" or (kind == "auto" and not any(there.values()))
    if on_cpu and run.trainer.precision == "fp16":
        yield Finding("precision", FAULT, "precision is fp16, which a CPU does not train in", "set it to bf16 or fp32")


def on_gpu(run: Params) -> bool:
    """Whether the run uses an NVIDIA card."""
    import torch

    return torch.cuda.is_available() and run.common.device.partition(":")[0] in ("auto", "cuda")


def check_memory(run: Params) -> Iterator[Finding]:
    """The peaks of memory that sizes of weights, layers and batches let expect, beside what there is."""
    import torch

    from tcar.lab import demand

    total, card = psutil.virtual_memory().total, 0
    if on_gpu(run):
        card = torch.cuda.get_device_properties(torch.device(run.common.device.replace("auto", "cuda"))).total_memory
    for peak in demand.memory(run, bool(card)):
        detail = f"about {_size(peak.host)} of {_size(total)}"
        detail += f", and {_size(peak.device)} of {_size(card)} of the GPU" if card else ""
        state = FAULT if peak.host > total or peak.device > card else OK
        yield Finding(f"memory, {peak.work}", state, f"{detail}; {peak.about}", peak.fix)


def check_fusions(run: Params) -> Iterator[Finding]:
    """Every configuration that is trained: that it can be made, within its budget."""
    from tcar.lab import demand

    allowed = run.fusion.max_trained_parameters
    sizes = {each.fusion: demand.cost(run, each.fusion)["trained_parameters"] for each in demand.trainings(run)}
    largest = max(sizes, key=sizes.get)
    detail = f"{len(sizes)} configurations, up to {sizes[largest]:,} trained parameters ({largest.kind})"
    fix = "lower fusion_width, cross_width, fusion_blocks or mlp_ratio, or raise max_trained_parameters"
    over = sizes[largest] > allowed
    detail += f", max_trained_parameters is {allowed:,}" if over else ""
    yield Finding("fusions", FAULT if over else OK, detail, fix)


def check_hours(run: Params, measure: bool) -> Iterator[Finding]:
    """How long extraction and training take, from measured speeds."""
    from tcar.lab import demand

    for found in demand.hours(run, measure=measure):
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
    from tcar.lab import space

    try:
        yield _place("disk", space.run_folder(run))
        if problem := space.Place(run.figures_dir, 0, "").problem:
            yield Finding("figures", FAULT, problem, "set figures to a folder that can be written")
        place = space.temporary()
    except ValueError as error:  # of a stream or a class: named by what checks these
        yield Finding("disk", REMARK, f"how much is needed is not known: {error}", "correct it in the parameter file")
        return
    except FileNotFoundError as error:
        yield Finding("temporary files", FAULT, str(error), "set TMPDIR to a folder that can be written")
        return
    yield _place("temporary files", place)
    asked = os.environ.get("TMPDIR", "")
    if asked and Path(asked).resolve() != place.folder.resolve():
        yield Finding("TMPDIR", REMARK, f"{asked} cannot be written, so {place.folder} is used", place.fix)
    elif len(str(place.folder)) > space.SOCKET:
        long = f"{place.folder} is {len(str(place.folder))} characters long, and sockets in it may have no name"
        yield Finding("TMPDIR", REMARK, long, f"set TMPDIR to a folder of at most {space.SOCKET} characters")


def _place(subject: str, place) -> Finding:
    if problem := place.problem:
        return Finding(subject, FAULT, problem, place.fix)
    detail = f"{_size(place.needed)} needed, {_size(place.free)} free in {place.folder}"
    return Finding(subject, FAULT if place.free < place.needed else OK, detail, place.fix)


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def check_dataset(run: Params) -> Iterator[Finding]:
    """The dataset of the parameter file: its labels and its videos."""
    root = run.data_root
    if run.data.dataset == "tabletop":
        there = (root / "labels.json").is_file()
        yield Finding(
            "dataset", OK, f"Tabletop in {root}" if there else "Tabletop, rendered by the first notebook"
        )
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
    begun = any((root / name).exists() for name in (prepare.LOCK, prepare.REPORT))
    cut_off = begun and (bool(found.unread) or not (root / prepare.REPORT).is_file())
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
    """The weights of both streams."""
    from tcar.lab import needs
    from tcar.streams import published

    for role in ("semantic", "motion"):
        name, stated = getattr(run.streams, role), getattr(run.streams, f"{role}_checkpoint")
        subject, path = f"{role} stream", run.root / Path(stated).expanduser()
        if name in published.PACKAGED and not stated:
            path = WEIGHTS / f"{name}.safetensors"
            found = results.relative(path, run.root) if path.is_file() else "no weights in the package"
            yield Finding(subject, OK if path.is_file() else FAULT, f"{name}: {found}", "run `make streams`")
        elif stated and path.exists():
            problem = _unfit(name, path)
            fix = f"set {role}_checkpoint to weights of {name}; {FETCH}"
            where = f"{name}: {results.relative(path, run.root)}"
            yield Finding(subject, FAULT if problem else OK, f"{where}{problem and ': '}{problem}", fix)
        else:
            try:
                need = needs.need_of(run, role)
            except ValueError as error:
                yield Finding(subject, FAULT, str(error), f"set {role}_checkpoint to a file or a name of the Hub")
                continue
            served, words = needs.state(need)
            where = f"{role}_checkpoint {stated}" if stated else need.checkpoint.name
            yield Finding(subject, OK if served else FAULT, f"{name}: {where} is {words}", FETCH)


def _unfit(stream: str, path: Path) -> str:
    """Why a file holds no weights of a stream; empty where it does. They are loaded, as nothing else shows it."""
    from tcar.streams.registry import create_stream
    from tcar.streams.weights import CheckpointError

    try:
        create_stream(stream, checkpoint=path)
    except (CheckpointError, ValueError, OSError) as error:
        return str(error).partition("\n")[0]
    return ""


def check_baselines(run: Params) -> Iterator[Finding]:
    """The weights of the baselines, where the run has any."""
    from tcar.lab import needs

    try:
        wanted = needs.baseline_needs(run)
    except ValueError as error:
        yield Finding("baselines", FAULT, str(error), "correct it in the parameter file")
        return
    for need in wanted:
        served, words = needs.state(need)
        where = f"{need.checkpoint.name} in the cache of the Hub"
        where = results.relative(need.target, run.root) if need.target else where
        detail = f"{need.purpose.removeprefix('baseline ')}: {where} is {words}"
        if need.advice:  # left out, it would have random weights, which a run refuses
            yield Finding("baseline", FAULT, f"{detail}, and no parameter names it", f"{need.advice}; {FETCH}")
        else:
            yield Finding("baseline", OK if served else FAULT, detail, FETCH)
