"""What the renderer knows of a clip: where it differs from its twin, and what part each thing plays in the action."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tcar.data.ssv2 import DatasetError
from tcar.ground.errors import unknown
from tcar.tabletop.controls import apply
from tcar.tabletop.dataset import STANDARD, SetPlan, draw, load_index, load_truth
from tcar.tabletop.scene import Rendering, render
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.templates import FAMILIES

ROLES = ("mover", "reference", "decoy", "hand", "screen", "distractor")
# The parts that a family's drawing gives to a thing whatever its classes say of it; see `roles`.
_GIVEN = {
    "front_behind": {"object 1": "reference"},  # it trembles with the held thing, and so counts as moving
    "over_next": {"object 1": "reference"},
    "closer_away": {"object 3": "reference"},
    "cover_uncover": {"object 0": "reference"},
    "collide_pass": {"object 2": "screen"},
    "box": {"object 1": "screen"},
    "turn_camera": {"object 0": "reference", "object 1": "reference"},
    "approach": {"object 0": "reference", "object 1": "reference"},
    "towards_camera": {"object 1": "distractor"},
}
_PRETENDED = ("surface", "box")  # where what does not move is what the hand pretends to take
_ROUNDING = 1e-3  # share of pixels: OpenCV rounds edges otherwise on another processor, and settings change far more


def decisive(root: Path | str, clip: str, drawn: TabletopSettings = STANDARD) -> Bool[np.ndarray, "t h w"]:
    """Return where a clip and its twin differ in any channel, as the renderer draws both: what the codec loses is no
    difference, and one grey level is.

    A folder does not say how it was drawn, so `drawn` must be the settings that it was rendered with; both clips are
    drawn anew from the seed of their set. Shadows belong to what differs; the instances of `load_truth` have none.

    Raises FileNotFoundError for a folder that is no Tabletop, and DatasetError for a clip that is not in it or that
    these settings do not draw.
    """
    truth, instances = _known(root, clip)
    family, index = FAMILIES[truth["family"]], truth["class"]
    split, _, number = truth["set"].split("-")
    plan = SetPlan(family.name, split, int(number), tuple(truth["seed"]), ())
    scenes = draw(plan, drawn)

    def rendered(one: int) -> Rendering:
        size = drawn.width, drawn.height
        if drawn.control:
            return apply(drawn.control, scenes[one], family, plan.seed, *size)[1]
        return render(scenes[one], *size)

    own, twin = rendered(index), rendered(family.twin_of(index))
    _same(root, clip, instances, own.instances)
    return (own.frames != twin.frames).any(axis=-1)


def roles(truth: Mapping) -> dict[str, list[int]]:
    """Return the ids of a clip's instances by the part that they play; each has one, and a part may have none.

    "mover" is what acts, but for hands: what the truth calls moving. "reference" is what the action is done to, before
    or beside without moving it: the thing that another nears, covers or is held at, that a hand pretends to take, or
    that a camera films. "screen" hides what counts and is not what acts: the screen of `collide_pass`, and the box. The
    cloth of `cover_uncover` is what acts, a mover. "decoy" is what moves and looks like a mover but does not count.
    "distractor" lies about without a part.

    Raises ValueError for a family that Tabletop does not have.
    """
    if truth["family"] not in FAMILIES:
        raise ValueError(f"family {truth['family']!r}: {unknown(truth['family'], FAMILIES)}")
    found: dict[str, list[int]] = {role: [] for role in ROLES}
    for instance in truth["instances"]:
        found[_role(truth, instance)].append(instance["id"])
    return found


def _role(truth: Mapping, instance: Mapping) -> str:
    family, name = truth["family"], instance["name"]
    if instance["category"] == "hand":
        return "hand"
    if name.startswith("distractor"):
        return "distractor"
    if given := _GIVEN.get(family, {}).get(name):
        return given
    if instance["id"] in truth["moving"]:
        return "mover"
    return "reference" if family in _PRETENDED else "decoy"


def role_masks(truth: Mapping, instances: UInt8[np.ndarray, "t h w"]) -> dict[str, Bool[np.ndarray, "t h w"]]:
    """Return where what plays each part is seen; a part that nothing plays, or that is out of sight, has no pixel."""
    return {role: np.isin(instances, ids) for role, ids in roles(truth).items()}


def truth_at(mask: Bool[np.ndarray, "t h w"], times: Float[np.ndarray, " s"]) -> Bool[np.ndarray, "s h w"]:
    """Return the frames of a mask that are seen at these times, in [0, 1] of the clip; 1 is the end of the last one."""
    if (times < 0).any() or (times > 1).any():
        raise ValueError(f"times are in [0, 1] of the clip; got {times.min():.3g} to {times.max():.3g}")
    return mask[np.minimum((times * len(mask)).astype(int), len(mask) - 1)]


def event_times(truth: Mapping) -> dict[str, tuple[float, float]]:
    """Return when each event of a clip begins and ends, in [0, 1] of the clip; its last frame belongs to it."""
    count = len(truth["frames"])
    return {
        event["name"]: (max(event["start"], 0) / count, min(event["end"] + 1, count) / count)
        for event in truth["events"]
    }


def _known(root: Path | str, clip: str) -> tuple[dict, np.ndarray]:
    index = load_index(root)
    if clip not in index:
        raise DatasetError(f"{root}: no clip {clip!r} among the {len(index):,} of this Tabletop")
    return load_truth(root, clip)


def _same(root: Path | str, clip: str, stored: np.ndarray, drawn: np.ndarray) -> None:
    """Raise DatasetError where the drawing is not the clip that the folder holds."""
    if stored.shape != drawn.shape:
        frames, height, width = (f"{a}, not {b}" if a != b else str(a)
                                 for a, b in zip(stored.shape, drawn.shape, strict=True))
        wrong = f"its frames are {frames}, its height is {height}, its width is {width}"
    elif (share := (stored != drawn).mean()) > _ROUNDING:
        wrong = f"other things are seen at {share:.1%} of its pixels"
    else:
        return
    raise DatasetError(
        f"{root}: clip {clip} is not what these settings draw: {wrong}; give the settings it was rendered with "
        "(width, height, lengths, difficulty, control), or render it again with this code"
    )
