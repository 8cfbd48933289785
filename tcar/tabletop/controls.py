"""Controls: what a clip becomes when one kind of evidence is taken away; class, set and twin stay as they were.

Reversed and shuffled time as in Wei et al. 2018 and Sevilla-Lara et al. 2021; background alone after HAT (Chung et al.
2022); another scene's still behind the action after SCUBA (Li et al. 2023); motion without appearance, as random dots
that move with the true flow, after Johansson 1973.
"""

from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import UInt8

from tcar.tabletop.family import Family
from tcar.tabletop.scene import REFERENCE_HEIGHT, REFERENCE_WIDTH, Rendering, Scene, render
from tcar.tabletop.stage import Stage
from tcar.tabletop.templates import FAMILIES


def apply(
    control: str, scene: Scene, family: Family, seed: tuple[int, ...], width: int, height: int
) -> tuple[Scene, Rendering]:
    """A scene of a family under a control, and its rendering; all scenes of a set (one `seed`) get the same random
    numbers.

    Raises ValueError for a control that is not in CONTROLS.
    """
    if control not in CONTROLS:
        raise ValueError(f"control: {control!r} is not one of {', '.join(CONTROLS)}")
    rng = np.random.default_rng([*seed, 7])
    if control in _SCENES:
        scene = _SCENES[control](scene, rng)
        return scene, render(scene, width, height)
    rendering = render(scene, width, height)
    return scene, replace(rendering, frames=_PICTURES[control](scene, rendering, rng, family))


def _noise(
    scene: Scene, rendering: Rendering, rng: np.random.Generator, family: Family
) -> UInt8[np.ndarray, "t h w 3"]:
    """Every instance, and the background, wears the same kind of noise, which moves with it: without motion there is
    nothing to see."""
    height, width = rendering.instances.shape[1:]
    cells = (REFERENCE_HEIGHT // 2, REFERENCE_WIDTH // 2)
    frames = np.empty_like(rendering.frames)
    for identity in range(rendering.affines.shape[1]):
        # cells of three pixels survive the codec
        grain = rng.integers(0, 256, cells, dtype=np.uint8).repeat(3, axis=0).repeat(3, axis=1)
        grain = cv2.cvtColor(grain, cv2.COLOR_GRAY2RGB)
        for t, ids in enumerate(rendering.instances):
            here = ids == identity
            if here.any():
                matrix = rendering.affines[t, identity]
                moved = cv2.warpAffine(grain, matrix, (width, height), borderMode=cv2.BORDER_WRAP)
                frames[t][here] = moved[here]
    return frames


def _conflict(
    scene: Scene, rendering: Rendering, rng: np.random.Generator, family: Family
) -> UInt8[np.ndarray, "t h w 3"]:
    """The action before a still of a scene of another group: what stands there speaks for another class."""
    own = {pair.group for pair in family.pairs}
    others = [f for f in FAMILIES.values() if not own & {pair.group for pair in f.pairs}]
    other = others[rng.integers(len(others))]
    scenes = list(other.draw(Stage(scene.background.vocabulary, [int(rng.integers(1 << 30))])).values())
    height, width = rendering.instances.shape[1:]
    still = render(scenes[rng.integers(len(scenes))], width, height)
    picture = still.frames[len(still.frames) // 2]
    seen = rendering.instances[..., None] > 0
    return np.where(seen, rendering.frames, picture)


# what time, or the scene, becomes
_SCENES = {
    "reversed": lambda scene, rng: scene.reversed(),
    "shuffled": lambda scene, rng: scene.at(rng.permutation(scene.frames)),
    "frozen": lambda scene, rng: scene.at(np.full(scene.frames, rng.integers(scene.frames))),
    "background": lambda scene, rng: replace(scene, items=(), moving=()),
}
# what the picture becomes, with everything where it was
_PICTURES = {"noise": _noise, "conflict": _conflict}
CONTROLS = (*_SCENES, *_PICTURES)
