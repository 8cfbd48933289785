"""What is known of a clip of Tabletop beside its video: its twin, where they differ, who plays which part, and when."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from tcar.data.ssv2 import DatasetError
from tcar.explain.errors import ExplanationError
from tcar.tabletop.dataset import load_index, load_truth
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.truth import decisive, event_times, role_masks

VIDEOS, TRUTH = "videos", "ground_truth/index.json"


@dataclass(frozen=True)
class Known:
    """The truth of one rendered clip; masks are over all of its frames, events are (name, start, end) in [0, 1].

    `decisive` is where the clip and its twin differ, None where it could not be drawn again, and `undrawn` says why.
    """

    clip: str
    label: str
    group: str
    set: str
    twin: str
    twin_video: Path
    decisive: Bool[np.ndarray, "t h w"] | None
    roles: dict[str, Bool[np.ndarray, "t h w"]]
    events: tuple[tuple[str, float, float], ...]
    undrawn: str = ""


def known(video: str | Path | np.ndarray, drawn: TabletopSettings | None = None) -> Known | None:
    """Return the truth of a video that lies in a Tabletop dataset (`ROOT/videos/ID.webm`), None for any other.

    `drawn` are the settings that it was rendered with; without them those of the demo are tried, and where they draw
    another clip the truth has no `decisive`.
    """
    if isinstance(video, np.ndarray) or Path(video).parent.name != VIDEOS:
        return None
    root, clip = Path(video).parents[1], Path(video).stem
    if not (root / TRUTH).is_file():
        return None
    if drawn is not None:
        return truth_of(root, clip, drawn)
    try:
        return truth_of(root, clip, TabletopSettings())
    except DatasetError as error:
        return truth_of(root, clip, None, str(error))


def truth_of(root: Path, clip: str, drawn: TabletopSettings | None, undrawn: str = "") -> Known:
    """Return the truth of a clip of a Tabletop dataset that was rendered with these settings; without any it has no
    `decisive`.

    Raises ExplanationError for a clip that is none of the dataset, DatasetError where the settings draw another.
    """
    index = load_index(root)
    if clip not in index:
        raise ExplanationError(f"{root}: no clip {clip!r} in its ground truth; it has {len(index)} others")
    told, (truth, instances) = index[clip], load_truth(root, clip)
    events = tuple((name, start, end) for name, (start, end) in event_times(truth).items())
    twin = told["twin"]
    return Known(
        clip, told["class"], told["group"], told["set"], twin, root / VIDEOS / f"{twin}.webm",
        drawn and decisive(root, clip, drawn), role_masks(truth, instances), events, undrawn,
    )  # fmt: skip
