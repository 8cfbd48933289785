"""What is installed, found and missing, and what a parameter file will take of this machine, each fault with its fix:
`make doctor`, or `python -m tcar.doctor PARAMS [--measure]`.

`--measure` times a few steps of training here, for the hours. Exit status 1 when something is broken, 0 when there are
only remarks.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tcar import params, results
from tcar.params import ParameterError, Params

OK, REMARK, FAULT = "ok", "remark", "FAULT"
FETCH = "run `python -m tcar.models.fetch` with this parameter file: it fetches it, or says how to by hand"
REINSTALL = "run `make setup`; where that changes nothing, `make clean-venv setup`"
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is shown where the state is not ok."""

    subject: str
    state: str
    detail: str
    fix: str = ""


def check_python() -> Iterator[Finding]:
    """The interpreter and the pinned packages."""
    tried = sys.version_info[:2] == (3, 11)
    fix = "the pinned packages were tried together on 3.11: `make clean-venv setup PYTHON=python3.11`"
    yield Finding("Python", OK if tried else REMARK, f"{platform.python_version()}, {sys.executable}", fix)
    try:
        required = importlib.metadata.requires("tcar") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", FAULT, "tcar is not installed in this environment", REINSTALL)
        return
    pins = [re.fullmatch(r"([\w.-]+)==([\w.]+)(?:\s*;.*)?", text) for text in required]
    wrong = [_mismatch(name, version) for name, version in (pin.groups() for pin in pins if pin)]
    wrong = [text for text in wrong if text]
    detail = "; ".join(wrong) or f"{len(pins)} pinned packages as pinned"
    yield Finding("packages", FAULT if wrong else OK, detail, REINSTALL)


def _mismatch(name: str, version: str) -> str:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    return "" if found.partition("+")[0] == version else f"{name} is {found}, not {version}"


def check_torch() -> Iterator[Finding]:
    """torch and its build, torchvision beside it, and what stands on both."""
    import torch

    build = f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU'} build"
    driver = shutil.which("nvidia-smi")
    if torch.version.cuda and not driver:
        fix = "works, but takes several GB; environment.yml says how to have the CPU build"
        yield Finding("torch", REMARK, f"{build}, but no NVIDIA driver", fix)
    elif driver and not torch.version.cuda:
        fix = "to use the GPU, have the CUDA build of the same torch; environment.yml says how"
        yield Finding("torch", REMARK, f"{build}, though there is an NVIDIA driver", fix)
    else:
        yield Finding("torch", OK, f"{build}, {torch.get_num_threads()} threads")
    import timm
    import torchvision
    from transformers import Dinov2Model

    if torchvision.extension._has_ops():
        yield Finding("torchvision", OK, f"{torchvision.__version__}, matches torch")
    else:
        other = "built for another torch: it imports after `import tcar` alone, without torchvision.ops"
        fix = "begin code of your own that needs it, timm or transformers with `import tcar`"
        yield Finding("torchvision", REMARK, f"{torchvision.__version__}, {other}", fix)
    yield Finding("models", OK, f"timm {timm.__version__}, transformers ({Dinov2Model.__name__}) import")


def check_accelerator() -> Iterator[Finding]:
    """The GPU with its memory and precision."""
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            with torch.cuda.device(i):
                precision = "bf16, fp16" if torch.cuda.is_bf16_supported(False) else "fp16, no bf16"
            yield Finding(f"GPU {i}", OK, f"{about.name}, {about.total_memory / GIB:.0f} GiB, {precision}")
    elif torch.backends.mps.is_available():
        yield Finding("GPU", OK, "Apple MPS, fp16")
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        fix = f"does `nvidia-smi` list it, is its driver new enough for CUDA {torch.version.cuda}?"
        yield Finding("GPU", FAULT, "there is a driver, but torch sees no GPU", fix)
    else:
        yield Finding("GPU", OK, "none: all runs on the CPU, in float32")


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

    from tcar import demand

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
    from tcar import demand

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
    from tcar import demand

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
    from tcar import room

    try:
        yield _place("disk", room.run_folder(run))
        if problem := room.Place(run.figures_dir, 0, "").problem:
            yield Finding("figures", FAULT, problem, "set figures to a folder that can be written")
        place = room.temporary()
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
    elif len(str(place.folder)) > room.SOCKET:
        long = f"{place.folder} is {len(str(place.folder))} characters long, and sockets in it may have no name"
        yield Finding("TMPDIR", REMARK, long, f"set TMPDIR to a folder of at most {room.SOCKET} characters")


def _place(subject: str, place) -> Finding:
    if problem := place.problem:
        return Finding(subject, FAULT, problem, place.fix)
    detail = f"{_size(place.needed)} needed, {_size(place.free)} free in {place.folder}"
    return Finding(subject, FAULT if place.free < place.needed else OK, detail, place.fix)


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def check_system() -> Iterator[Finding]:
    """What libraries need of the system: semaphores, and folders for what they keep."""
    from tcar import room

    problem = room.semaphores()
    fix = "have /dev/shm writable (docker run --shm-size=64m, or a tmpfs there)"
    yield Finding("worker processes", FAULT if problem else OK, problem or "semaphores can be made", fix)
    served = True
    for variable, (folders, fails) in room.caches().items():
        if all(room.Place(folder, 0, "").problem for folder in folders):
            served, tried = False, " or ".join(map(str, folders))
            yield Finding("caches", FAULT if fails else REMARK, f"{tried} cannot be written",
                          f"set {variable} to a folder that can")  # fmt: skip
    if served:
        yield Finding("caches", OK, "of matplotlib, IPython and numba can be written")


def check_decoders() -> Iterator[Finding]:
    """A tiny VP9 clip, written and read back by both decoders."""
    import av  # before decord: the other way round the VP9 encoder fails
    import numpy as np

    frames = [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.webm"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libvpx-vp9", rate=12, width=64, height=48, pix_fmt="yuv420p")
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
        with av.open(str(path)) as file:
            read = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        yield _compared(f"PyAV {av.__version__}", frames, read)
        import decord

        reader = decord.VideoReader(str(path), num_threads=1)
        read = [reader[i].asnumpy() for i in range(len(reader))]
        yield _compared(f"decord {importlib.metadata.version('decord2')}", frames, read)


def _compared(name: str, written: list, read: list) -> Finding:
    if len(read) != len(written):
        return Finding(name, FAULT, f"reads {len(read)} of {len(written)} frames of a VP9 clip", REINSTALL)
    error = max(abs(float(a.mean()) - float(b.mean())) for a, b in zip(written, read, strict=True))
    if error > 8:
        return Finding(name, FAULT, f"reads a VP9 clip {error:.0f} grey levels off", REINSTALL)
    return Finding(name, OK, "writes and reads a VP9 clip" if "PyAV" in name else "reads a VP9 clip")


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

    make = f"`python -m tcar.data.prepare DOWNLOADS {root}`"
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
    from tcar.models import needs, published

    for role in ("semantic", "motion"):
        name, stated = getattr(run.streams, role), getattr(run.streams, f"{role}_checkpoint")
        subject, path = f"{role} stream", run.root / Path(stated).expanduser()
        if name in published.PACKAGED and not stated:
            path = results.PACKAGE / "models" / "weights" / f"{name}.safetensors"
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
            where = stated or need.checkpoint.name
            yield Finding(subject, OK if served else FAULT, f"{name}: {where} is {words}", FETCH)


def _unfit(stream: str, path: Path) -> str:
    """Why a file holds no weights of a stream; empty where it does. They are loaded, as nothing else shows it."""
    from tcar.models import CheckpointError, create_stream

    try:
        create_stream(stream, checkpoint=path)
    except (CheckpointError, ValueError, OSError) as error:
        return str(error).partition("\n")[0]
    return ""


def check_baselines(run: Params) -> Iterator[Finding]:
    """The weights of the baselines, where the run has any."""
    from tcar.models import needs

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


def check_jupyter() -> Iterator[Finding]:
    """The kernel JupyterLab starts: that of this environment, and alive."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager, start_new_kernel

    spec = KernelSpecManager().get_kernel_spec("python3")
    program = KernelManager(kernel_name="python3").format_kernel_cmd()[0]
    own = (
        Path(program).is_absolute()
        and Path(program).parent.resolve() == Path(sys.executable).parent.resolve()
    )
    fix = f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    if not own:
        yield Finding("Jupyter kernel", REMARK, f"`python3` is {program}, from {spec.resource_dir}", fix)
        return
    manager, client = start_new_kernel(kernel_name="python3", stderr=subprocess.DEVNULL)
    try:
        reply = client.execute_interactive("import tcar", timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if reply["content"]["status"] == "ok":
        yield Finding("Jupyter kernel", OK, "starts and imports tcar")
    else:
        yield Finding("Jupyter kernel", FAULT, "starts, but cannot import tcar", REINSTALL)


def check_typst() -> Iterator[Finding]:
    """The compiler of the paper."""
    import typst

    pdf = typst.compile(b"= Title")
    yield Finding(
        "typst", OK if pdf[:4] == b"%PDF" else FAULT, importlib.metadata.version("typst"), REINSTALL
    )


def findings(run: Params, measure: bool = False) -> Iterator[Finding]:
    """All findings, as they come; a check that dies is a fault of its own."""
    checks: tuple[tuple[str, Callable], ...] = (
        ("Python", check_python), ("torch", check_torch), ("GPU", check_accelerator),
        ("machine", lambda: check_machine(run)), ("disk", lambda: check_disks(run)), ("system", check_system),
        ("memory", lambda: check_memory(run)), ("fusions", lambda: check_fusions(run)),
        ("watching", lambda: check_watching(run)), ("decoders", check_decoders),
        ("dataset", lambda: check_dataset(run)), ("checkpoints", lambda: check_checkpoints(run)),
        ("baselines", lambda: check_baselines(run)), ("Jupyter kernel", check_jupyter), ("typst", check_typst),
        ("hours", lambda: check_hours(run, measure)),
    )  # fmt: skip
    for subject, check in checks:
        try:
            yield from check()
        except (ValueError, ParameterError) as error:  # of a parameter that this machine or its libraries do not know
            yield Finding(subject, FAULT, " ".join(str(error).split()), "correct it in the parameter file")
        except Exception as error:  # whatever is broken, the rest of the report is still wanted
            yield Finding(subject, FAULT, f"{type(error).__name__}: {error}", REINSTALL)


def lines(finding: Finding, coloured: bool = False) -> str:
    """A finding as it is printed: a row, and its fix on a second one."""
    colour = {OK: "32", REMARK: "33", FAULT: "31;1"}[finding.state]
    state = f"{finding.state:8}"
    state = f"\x1b[{colour}m{state}\x1b[0m" if coloured else state
    fix = f"\n{'':28}-> {finding.fix}" if finding.state != OK else ""
    return f"{state}{finding.subject:20}{finding.detail}{fix}"


def main(arguments: list[str]) -> int:
    """Print the report; gives 1 where a fault was found."""
    asked = argparse.ArgumentParser(prog="python -m tcar.doctor", description=__doc__.partition(":")[0])
    asked.add_argument("params", nargs="?", help="parameter file; left out, the defaults")
    asked.add_argument("--measure", action="store_true", help="time a few steps of training here, for the hours")
    given = asked.parse_args(arguments)
    try:
        run = params.load(given.params) if given.params else Params()
    except ParameterError as error:
        print(f"error: {error}")
        return 1
    print(f"of {given.params or 'the default parameters'}:")
    faults = 0
    for finding in findings(run, given.measure):
        print(lines(finding, sys.stdout.isatty() and "NO_COLOR" not in os.environ), flush=True)
        faults += finding.state == FAULT
    print(f"\n{faults} fault{'s' * (faults != 1)}" if faults else "\nready")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
