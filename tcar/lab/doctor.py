"""What is installed, found and missing, and what a parameter file will take of this machine, each fault with its fix:
`make doctor`, or `tcar doctor PARAMS [--measure]`.

`--measure` times a few steps of training here, for the hours. Exit status 1 when something is broken, 0 when there are
only remarks.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tcar.lab.fitness import (
    FAULT,
    GIB,
    OK,
    REMARK,
    Finding,
    check_baselines,
    check_checkpoints,
    check_dataset,
    check_disks,
    check_fusions,
    check_hours,
    check_machine,
    check_memory,
    check_watching,
)
from tcar.lab.params import ParameterError, Params

REINSTALL = "run `make setup`; where that changes nothing, `make clean-venv setup`"


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


def check_system() -> Iterator[Finding]:
    """What libraries need of the system: semaphores, and folders for what they keep."""
    from tcar.lab import space

    problem = space.semaphores()
    fix = "have /dev/shm writable (docker run --shm-size=64m, or a tmpfs there)"
    yield Finding("worker processes", FAULT if problem else OK, problem or "semaphores can be made", fix)
    served = True
    for variable, (folders, fails) in space.caches().items():
        if all(space.Place(folder, 0, "").problem for folder in folders):
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


def report(run: Params, measure: bool = False) -> int:
    """Print every finding; gives 1 where one is a fault."""
    faults = 0
    for finding in findings(run, measure):
        print(lines(finding, sys.stdout.isatty() and "NO_COLOR" not in os.environ), flush=True)
        faults += finding.state == FAULT
    print(f"\n{faults} fault{'s' * (faults != 1)}" if faults else "\nready")
    return 1 if faults else 0
