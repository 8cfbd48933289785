"""Stand-in tasks that give the two small streams their pre-training: stills with dense labels, clips with true flow.

Scenes are random arrangements of the `pretrain` vocabulary, which shares no object, texture, background or clip with
Tabletop, and follow none of its templates. They play the part that web images and Kinetics play for published streams.
"""

import cv2
import numpy as np

from tcar.tabletop import assets
from tcar.tabletop.scene import Item, Scene, render
from tcar.tabletop.stage import Stage

CATEGORIES = ("background", "hand", "object", "held object", "cloth", "box")
SHAPE_NAMES = tuple(assets.SHAPES["pretrain"])
PATTERN_NAMES = assets.PATTERNS["pretrain"]


class _Arrangement(Stage):
    """A stage whose props come from a fixed stock: many scenes, few sprites to paint."""

    def __init__(self, task: int, seed: int, frames: int):
        super().__init__("pretrain", [task, seed], frames)
        self.background = assets.Background("pretrain", int(self.rng.integers(200)))
        self.skin = assets.sample_skin(np.random.default_rng(int(self.rng.integers(100))))

    def texture(self) -> assets.Texture:
        return assets.sample_texture("pretrain", np.random.default_rng(int(self.rng.integers(80))))


def still_scene(seed: int) -> Scene:
    """One random still: up to four objects, perhaps a cloth, a box, and hands that are empty or hold something."""
    return _arrange(_Arrangement(1, seed, 1), moving=False)


def clip_scene(seed: int, frames: int = 16) -> Scene:
    """One random clip: things and hands that slide, rise, grow, turn or rest, and sometimes a moving camera."""
    return _arrange(_Arrangement(2, seed, frames), moving=True)


def _arrange(s: Stage, moving: bool) -> Scene:
    items: list[Item] = []
    for i in range(int(s.rng.integers(1, 5))):
        track = _walk(s, (s.u(15, 145), s.u(35, 110)), moving and s.rng.random() < 0.6)
        items.append(s.thing(f"object {i}", track, 1.0 + s.u(0, 2), 2 * int(s.rng.integers(4, 10))))
    if s.rng.random() < 0.25:
        size = (int(s.rng.integers(30, 50)), int(s.rng.integers(30, 46)))
        track = _walk(s, (s.u(25, 135), s.u(50, 100)), moving and s.rng.random() < 0.5)
        items.append(Item("cloth", "cloth", track, s.depth(s.u(1, 3.2)), size, "pretrain", "cloth", s.texture()))
    if s.rng.random() < 0.25:
        texture, width = s.texture(), int(s.rng.integers(40, 56))
        track = _walk(s, (s.u(30, 130), s.u(70, 100)), False)
        items += [Item("box", kind, track, s.depth(depth), (width, 50), "pretrain", "box", texture, shadow=0.0)
                  for kind, depth in (("box-back", 0.5), ("box-front", s.u(2, 5)))]
    for i in range(int(s.rng.choice([0, 1, 1, 2]))):
        posture = str(s.rng.choice(["open", "grip"]))
        track = _walk(s, (s.u(15, 145), s.u(35, 105)), moving and s.rng.random() < 0.7, angle=s.u(-75, 75))
        depth = 3.0 + i
        items += s.hand(track, posture, depth, f"hand {i}")
        if posture == "grip" and s.rng.random() < 0.55:
            held = track.copy()
            held[:, 3] = 0.0
            items.append(s.thing(f"held {i}", held, depth + 0.25, 2 * int(s.rng.integers(4, 7))))
    camera = s.rest()
    if moving and s.rng.random() < 0.25:
        camera[:, 0] = s.u(-50, 50) * (_timing(s) - 0.5)
    if moving and s.rng.random() < 0.25:
        camera[:, 2] = np.linspace(*s.rng.permutation([s.u(0.8, 1.0), s.u(1.05, 1.4)]), s.frames)
    return s.scene(items, [], camera=camera, parallax=s.u(0, 0.4))


def _timing(s: Stage) -> np.ndarray:
    start = s.u(0.0, 0.6)
    ramp = s.ramp(start, start + s.u(0.25, 0.8))
    # half of the time there and back again, as a hand does
    return ramp if s.rng.random() < 0.6 else ramp * (1 - s.ramp(start + 0.3, start + s.u(0.5, 0.9)))


def _walk(s: Stage, place: tuple[float, float], moving: bool, angle: float = 0.0) -> np.ndarray:
    if not moving:
        return s.path(*place, s.u(0.8, 1.2), angle)
    heading, travel, timing = s.u(0, 2 * np.pi), s.u(10, 70), _timing(s) - 0.5
    wobble = s.tremor()
    growth = np.exp(s.u(-0.5, 0.5) * timing) if s.rng.random() < 0.3 else 1.0
    return s.path(place[0] + travel * np.cos(heading) * timing + wobble[:, 0],
                  place[1] + travel * np.sin(heading) * timing + wobble[:, 1], growth, angle)


def make_still(seed: int, size: int, grid: int, detail: int) -> tuple[np.ndarray, ...]:
    """One still and its labels: (frame [size size 3], category [g*detail g*detail], colour [g g 3], shape [g g],
    pattern [g g], offset [g g 2]).

    The category is that of the middle of every sub-patch, an index into `CATEGORIES`. The others describe the object
    that fills most of a patch of the grid: its first colour (RGB in [0, 1]), its outline and pattern (indices, -1 where
    no object does), and the way from the patch to its centre, in frame sizes.
    """
    scene = still_scene(seed)
    rendering = render(scene)
    ids = rendering.instances[0]
    names = scene.instances()
    first = {}
    for item in scene.items:
        first.setdefault(item.instance, item)
    category = np.zeros(len(names) + 1, np.uint8)
    for i, name in enumerate(names, 1):
        kinds = {"palm": "hand", "fingers": "hand", "cloth": "cloth", "box-back": "box", "box-front": "box"}
        kind = kinds.get(first[name].kind, "held object" if name.startswith("held") else "object")
        category[i] = CATEGORIES.index(kind)
    fine = (grid * detail, grid * detail)
    categories = cv2.resize(category[ids], fine, interpolation=cv2.INTER_NEAREST_EXACT)
    cover = _pool((ids[..., None] == np.arange(1, len(names) + 1)).astype(np.float32), grid)
    top = cover.argmax(-1)
    filled = cover.max(-1) > 0.35
    colour = np.zeros((grid, grid, 3), np.float32)
    offset = np.zeros((grid, grid, 2), np.float32)
    shape, pattern = np.full((grid, grid), -1), np.full((grid, grid), -1)
    centres = (np.mgrid[0:grid, 0:grid][::-1].transpose(1, 2, 0) + 0.5) / grid
    for i, name in enumerate(names):
        here, item = filled & (top == i), first[name]
        if item.kind != "object" or not here.any():
            continue
        colour[here] = np.array(item.texture.first) / 255
        offset[here] = item.track[0, :2] / [160, 120] - centres[here]
        shape[here], pattern[here] = SHAPE_NAMES.index(item.shape), PATTERN_NAMES.index(item.texture.pattern)
    frame = cv2.resize(rendering.frames[0], (size, size), interpolation=cv2.INTER_AREA)
    return frame, categories, colour, shape, pattern, offset


def make_clip(seed: int, size: int, grid: tuple[int, int, int], frames: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """One clip [t, size, size, 3] and its mean true flow [t', 2g, 2g, 2], in input pixels a frame at `size`.

    The flow is given at twice the token grid (four values a token), averaged over the frames of a token's time step.
    """
    rendering = render(clip_scene(seed, frames), 128, 96)
    flow = rendering.flow(stride=3) * [size / 128, size / 96]
    flow = np.concatenate([flow, flow[-1:]]).reshape(grid[0], -1, *flow.shape[1:]).mean(1)
    small = np.stack([_pool(step.astype(np.float32), 2 * grid[1]) for step in flow])
    clip = np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in rendering.frames])
    return clip, small.astype(np.float16)


def _pool(image: np.ndarray, grid: int) -> np.ndarray:
    pooled = [cv2.resize(image[..., c], (grid, grid), interpolation=cv2.INTER_AREA) for c in range(image.shape[-1])]
    return np.stack(pooled, -1)

