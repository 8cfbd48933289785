"""What a run takes of the disks, and where the libraries that it uses write: for the doctor, before anything starts."""

import importlib.util
import multiprocessing
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tcar.lab.counts import clips
from tcar.lab.demand import checkpoint_bytes
from tcar.lab.params import Params
from tcar.lab.plan import ROLES, row_bytes
from tcar.streams.registry import stream_spec

CLIP = 40_000  # bytes of a clip of Tabletop with its ground truth, 160 x 120 pixels, in whole blocks of the disk
REST = 10**9  # bytes of a run for all else: notebooks, figures, results and logs
WORK = 64 * 2**20  # bytes of temporary files
SOCKET = 108 - 33  # characters of a path that leave room for the name of a socket, as multiprocessing makes it


@dataclass(frozen=True)
class Place:
    """A folder that is written to, how many bytes are still to come, and what to set where it does not serve."""

    folder: Path
    needed: int
    fix: str

    @property
    def problem(self) -> str:
        """Why nothing can be written there; empty where it can."""
        try:
            with tempfile.TemporaryFile(dir=_existing(self.folder)) as file:
                file.write(b"x")
        except OSError as error:
            return f"{self.folder} cannot be written: {error.strerror or error}"
        return ""

    @property
    def free(self) -> int:
        """The bytes that are free there."""
        return shutil.disk_usage(_existing(self.folder)).free


def run_folder(run: Params) -> Place:
    """Return where a run is written, with what it has not written yet of data, tokens, frames, trainings and
    the table of the linear probes, which goes again.

    Raises ValueError for a stream or for classes that there are not.
    """
    own = run.data.dataset == "tabletop" and not run.data.data_root
    share = run.tabletop.width * run.tabletop.height / (160 * 120)
    whole = {
        "data": int(own * sum(clips(run).values()) * CLIP * share), "features": tokens(run),
        "frames": int(1e9 * run.trainer.frame_cache_gb), "trainings": checkpoint_bytes(run), "probes": probe_table(run),
    }  # fmt: skip
    left = {name: max(0, size - _bytes(run.run_dir / name)) for name, size in whole.items() if size}
    words = ", ".join(f"{size / 1e9:.1f} GB of {name}" for name, size in left.items() if size >= 5e7)
    fix = f"this run still writes {words + ' and ' if words else ''}about {REST / 1e9:.0f} GB of results: free some, "
    return Place(run.run_dir, sum(left.values()) + REST, fix + "or set `runs:` to a folder on another disk")


def temporary() -> Place:
    """Return where temporary files go: little, as no step copies tokens. Raises FileNotFoundError where there is no
    folder for them."""
    return Place(Path(tempfile.gettempdir()), WORK, "set TMPDIR to a folder on a larger disk")


def semaphores() -> str:
    """Say why worker processes cannot be had here; empty where they can."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        return f"no semaphore can be made: {error.strerror or error}"
    return ""


def caches() -> dict[str, tuple[list[Path], bool]]:
    """Return by the variable that sets it where a library keeps what it has made, and whether it fails without.

    One of the folders is enough.
    """
    home = Path(os.path.expanduser("~"))
    stated = {kind: os.environ.get(f"XDG_{kind.upper()}_HOME") for kind in ("config", "cache")}
    config, cache = (Path(folder or home / f".{kind}") for kind, folder in stated.items())
    umap = importlib.util.find_spec("umap")
    inside = [Path(folder) / "__pycache__" for folder in umap.submodule_search_locations or ()] if umap else []
    places = {
        "MPLCONFIGDIR": ([config / "matplotlib"], False), "IPYTHONDIR": ([home / ".ipython"], False),
        "NUMBA_CACHE_DIR": ([*inside, cache / "numba"], True),
    }  # fmt: skip
    return {name: ([Path(os.environ[name])] if os.environ.get(name) else folders, fails)
            for name, (folders, fails) in places.items()}  # fmt: skip


def tokens(run: Params) -> int:
    """Return the bytes of the tokens of both streams; none where the run trains end to end."""
    if run.streams.semantic_adapters:
        return 0
    return sum(clips(run).values()) * run.streams.views * sum(row_bytes(run, role) for role in ROLES)


def probe_table(run: Params) -> int:
    """Return the bytes of the table that linear probes of one stream are fitted on: each moment of each clip averaged,
    in single precision."""
    widths = [getattr(run.streams, f"{role}_grid")[0] * stream_spec(getattr(run.streams, role)).width for role in ROLES]
    found = clips(run)
    return 4 * (found["train"] + found["validation"]) * max(widths)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _bytes(folder: Path) -> int:
    """What the files of a folder take of the disk."""
    return sum(512 * os.lstat(Path(parent, name)).st_blocks for parent, _, names in os.walk(folder) for name in names)
