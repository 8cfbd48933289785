"""An extraction that kills itself at a chosen moment; as a script, one rank of several under torchrun."""

import os
import signal
import sys
from pathlib import Path

import torch
from bright import FRAMES, GRID, Brightness, clip, in_this_process

from tcar.data.views import SegmentView
from tcar.features import ExtractionSettings, FeatureError, FeatureStore, TokenSpec, extract, extraction, ranks
from tcar.ground import log

# A moment is just before a file is opened, renamed or deleted.
MOMENTS = ("open", "os.rename", "os.remove")


def make(videos: Path, root: Path, *, patience: float = 60, moment: int = 0) -> FeatureStore:
    """Extract two views, some of them mirrored, of all videos of a folder in batches of two clips; SIGKILL at a moment
    in the root, counted from 1.
    """
    torch.set_num_threads(1)
    extraction.isolated_map, ranks.PATIENCE = in_this_process, patience
    if moment:
        _kill_at(moment, root)
    clips = [clip(path) for path in sorted(videos.glob("*.webm"))]
    wanted = [TokenSpec(Brightness, GRID, SegmentView(FRAMES, flip=0.5))]
    return extract(clips, wanted, root, ExtractionSettings(batch_clips=2, views=2))[0]


def in_a_child(*arguments, rank: int = 0, world: int = 1, **settings) -> int:
    """Start `make` in a process of its own; gives its id. It ends with 0, or 3 for a FeatureError on stderr."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
        make(*arguments, **settings)
        code = 0
    except FeatureError as error:
        os.write(2, f"{error}\n".encode())
        code = 3
    finally:
        os._exit(code)


def _kill_at(moment: int, root: Path) -> None:
    left = [moment]

    def hook(event: str, arguments: tuple) -> None:
        if event in MOMENTS and str(arguments[0]).startswith(str(root)):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    log.configure("WARNING")
    dies = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    make(Path(sys.argv[1]), Path(sys.argv[2]), moment=8 if dies else 0)
