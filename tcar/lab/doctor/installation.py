"""What every run needs of this machine: packages as pinned, the GPU, folders to write to, decoders, Jupyter, typst."""

import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tcar.lab.doctor.finding import FAULT, GIB, OK, REINSTALL, REMARK, Finding, judged


def check_python() -> Iterator[Finding]:
    """The interpreter and the pinned packages."""
    from packaging.requirements import Requirement

    tried = sys.version_info[:2] == (3, 11)
    fix = "the pinned packages were tried together on 3.11: `make clean-venv setup PYTHON=python3.11`"
    yield Finding("Python", OK if tried else REMARK, f"{platform.python_version()}, {sys.executable}", fix)
    try:
        required = [Requirement(text) for text in importlib.metadata.requires("tcar") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", FAULT, "tcar is not installed in this environment", REINSTALL)
        return
    wrong = [problem for one in required if (problem := _mismatch(one.name, one.specifier))]
    yield judged("packages", not wrong, "; ".join(wrong) or f"{len(required)} packages as pinned", REINSTALL)


def _mismatch(name: str, pinned) -> str:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    return "" if pinned.contains(found, prereleases=True) else f"{name} is {found}, not {str(pinned).lstrip('=')}"


def check_torch() -> Iterator[Finding]:
    """torch and its build, torchvision beside it, and what stands on both."""
    import timm
    import torch
    import torchvision
    from transformers import Dinov2Model

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

    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        with torch.cuda.device(i):
            precision = "bf16, fp16" if torch.cuda.is_bf16_supported(False) else "fp16, no bf16"
        yield Finding(f"GPU {i}", OK, f"{about.name}, {about.total_memory / GIB:.0f} GiB, {precision}")
    if torch.cuda.is_available():
        return
    if torch.backends.mps.is_available():
        yield Finding("GPU", OK, "Apple MPS, fp16")
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        fix = f"does `nvidia-smi` list it, is its driver new enough for CUDA {torch.version.cuda}?"
        yield Finding("GPU", FAULT, "there is a driver, but torch sees no GPU", fix)
    else:
        yield Finding("GPU", OK, "none: all runs on the CPU, in float32")


def check_system() -> Iterator[Finding]:
    """What libraries need of the system: semaphores for worker processes, and folders for what they keep."""
    try:
        multiprocessing.get_context("spawn").Lock()
        yield Finding("worker processes", OK, "semaphores can be made")
    except OSError as error:
        fix = "have /dev/shm writable (docker run --shm-size=64m, or a tmpfs there)"
        yield Finding("worker processes", FAULT, f"no semaphore can be made: {error.strerror or error}", fix)
    lacking = [(name, folders) for name, folders in _caches().items() if all(map(unwritable, folders))]
    for name, folders in lacking:
        state = FAULT if name == "NUMBA_CACHE_DIR" else REMARK  # numba fails without; the others make do
        detail = f"{' or '.join(map(str, folders))} cannot be written"
        yield Finding("caches", state, detail, f"set {name} to a folder that can")
    if not lacking:
        yield Finding("caches", OK, "of matplotlib, IPython and numba can be written")


def _caches() -> dict[str, list[Path]]:
    """Where a library keeps what it has made, one of the folders, by the variable that sets it."""
    home = Path("~").expanduser()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    umap = importlib.util.find_spec("umap")
    inside = [Path(folder) / "__pycache__" for folder in umap.submodule_search_locations] if umap else []
    usual = {"MPLCONFIGDIR": [config / "matplotlib"], "IPYTHONDIR": [home / ".ipython"],
             "NUMBA_CACHE_DIR": [*inside, cache / "numba"]}  # fmt: skip
    return {name: [Path(os.environ[name])] if os.environ.get(name) else folders for name, folders in usual.items()}


def unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder that is there or can be made; empty where it can."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)) as file:
            file.write(b"x")
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror or error}"
    return ""


def existing(folder: Path) -> Path:
    """The nearest folder from this one upward that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def check_decoders() -> Iterator[Finding]:
    """A tiny VP9 clip, written as the benchmark's are, and read back by the project's reader and by decord."""
    import numpy as np

    from tcar.data.video import read_frames  # before decord: the other way round the VP9 encoder fails
    from tcar.tabletop.dataset import write_video

    frames = np.stack([np.full((48, 64, 3), 20 * i, np.uint8) for i in range(10)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.webm"
        write_video(path, frames, 12)
        read = read_frames(path, list(range(10)))
        yield compared(f"PyAV {importlib.metadata.version('av')}", frames, read)
        import decord

        reader = decord.VideoReader(str(path), num_threads=1)
        read = reader.get_batch(range(len(reader))).asnumpy()
        yield compared(f"decord {importlib.metadata.version('decord2')}", frames, read)


def compared(name: str, written, read) -> Finding:
    """Whether a decoder gives the grey frames (t h w 3) that were written, all of them and in order."""
    if len(read) != len(written):
        return Finding(name, FAULT, f"reads {len(read)} of {len(written)} frames of a VP9 clip", REINSTALL)
    error = float(abs(written.mean((1, 2, 3)) - read.mean((1, 2, 3))).max())
    detail = "reads a VP9 clip as it was written" if error <= 8 else f"reads a VP9 clip {error:.0f} grey levels off"
    return judged(name, error <= 8, detail, REINSTALL)


def check_jupyter() -> Iterator[Finding]:
    """The kernel JupyterLab starts: that of this environment, and alive."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager, start_new_kernel

    program = Path(KernelManager(kernel_name="python3").format_kernel_cmd()[0])
    if not program.is_absolute() or program.parent.resolve() != Path(sys.executable).parent.resolve():
        detail = f"`python3` is {program}, from {KernelSpecManager().get_kernel_spec('python3').resource_dir}"
        fix = f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
        yield Finding("Jupyter kernel", REMARK, detail, fix)
        return
    manager, client = start_new_kernel(kernel_name="python3", stderr=subprocess.DEVNULL)
    try:
        reply = client.execute_interactive("import tcar", timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    fine = reply["content"]["status"] == "ok"
    yield judged("Jupyter kernel", fine, f"starts {'and imports' if fine else 'but cannot import'} tcar", REINSTALL)


def check_typst() -> Iterator[Finding]:
    """The compiler of the paper."""
    import typst

    fine = typst.compile(b"= Title").startswith(b"%PDF")
    yield judged("typst", fine, importlib.metadata.version("typst"), REINSTALL)
