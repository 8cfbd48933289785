"""A Tabletop scene as data, and the one renderer that turns it into frames and ground truth.

Lengths are pixels of the 160 x 120 reference frame whatever the rendered size; time is in frames.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from tcar.tabletop import assets

REFERENCE_WIDTH, REFERENCE_HEIGHT = 160, 120


@dataclass(frozen=True)
class Item:
    """One thing on the table and how it moves.

    `track` is [T, 4]: x, y (pixels), scale and angle (degrees, clockwise); `depth` [T] orders the layers, larger is
    nearer; `shown` [T] says when it is drawn; `lift` [T] is the height above the table that offsets its shadow.
    Layers of one `instance` (palm and fingers) share an id in the ground truth. `size` is the radius of an object,
    or the width and height of a cloth or a box.
    """

    instance: str
    kind: str  # object, palm, fingers, idle, cloth, box-back, box-front
    track: Float[np.ndarray, "t 4"]
    depth: Float[np.ndarray, " t"]
    size: tuple[int, int] = (12, 12)
    vocabulary: str = "train"
    shape: str = ""
    texture: assets.Texture | None = None
    skin: assets.Skin | None = None
    posture: str = "open"
    shown: np.ndarray | None = None
    lift: np.ndarray | None = None
    shadow: float = 0.35

    @property
    def category(self) -> str:
        return "hand" if self.skin else "object"

    def sprite(self) -> tuple[np.ndarray, tuple[float, float]]:
        """The premultiplied RGBA image and the pixel that `track` positions."""
        if self.skin:
            layer = "fingers" if self.kind == "fingers" else "palm"
            return assets.hand_sprite(self.skin, self.posture, layer), assets.HAND_ORIGIN
        if self.kind == "cloth":
            image = assets.cloth_sprite(self.texture, *self.size)
        elif self.kind.startswith("box"):
            image = assets.box_sprite(self.texture, *self.size, self.kind == "box-front")
        else:
            image = assets.object_sprite(self.vocabulary, self.shape, self.texture, self.size[0])
        return image, (image.shape[1] / 2, image.shape[0] / 2)


@dataclass(frozen=True)
class Scene:
    """Items before a background, seen by a camera.

    `camera` is [T, 3]: shift in x and y (pixels) and zoom; `parallax` says how much more a near layer zooms than the
    background. `events` are (name, first frame, last frame); `moving` names the instances that act; `variant` says
    which of a family's kinds this is, where there are several.
    """

    background: assets.Background
    items: tuple[Item, ...]
    camera: Float[np.ndarray, "t 3"]
    parallax: float = 0.0
    events: tuple[tuple[str, int, int], ...] = ()
    moving: tuple[str, ...] = ()
    placeholders: tuple[str, ...] = ()
    variant: str = ""

    @property
    def frames(self) -> int:
        return len(self.camera)

    def instances(self) -> list[str]:
        """Names in order of their ids; the first has id 1."""
        return list(dict.fromkeys(item.instance for item in self.items))

    def at(self, moments: Int[np.ndarray, " s"]) -> "Scene":
        """The same scene with its frames picked and ordered by their numbers; it has no events."""
        def pick(array):
            return None if array is None else array[moments]
        items = tuple(
            replace(i, track=pick(i.track), depth=pick(i.depth), shown=pick(i.shown), lift=pick(i.lift))
            for i in self.items
        )
        return replace(self, items=items, camera=pick(self.camera), events=())

    def reversed(self) -> "Scene":
        """The same scene with time running backwards: the exact reversal of every frame."""
        last = self.frames - 1
        events = tuple((name, last - end, last - start) for name, start, end in self.events)
        return replace(self.at(np.arange(self.frames)[::-1]), events=events)

    def mirrored(self) -> "Scene":
        """The same scene with left and right exchanged in every path (textures keep their handedness)."""
        items = []
        for item in self.items:
            track = item.track.copy()
            track[:, 0] = REFERENCE_WIDTH - track[:, 0]
            track[:, 3] = -track[:, 3]
            skin = replace(item.skin, mirrored=not item.skin.mirrored) if item.skin else None
            items.append(replace(item, track=track, skin=skin))
        camera = self.camera * np.array([-1.0, 1.0, 1.0])
        return replace(self, items=tuple(items), camera=camera)


@dataclass(frozen=True)
class Rendering:
    """Frames and the instance in front at every pixel (0 is the background)."""

    frames: UInt8[np.ndarray, "t h w 3"]
    instances: UInt8[np.ndarray, "t h w"]
    affines: Float[np.ndarray, "t i 2 3"]  # item coordinates to pixels, for the flow; index 0 is the background

    def flow(self, step: int = 1, stride: int = 1) -> Float[np.ndarray, "s h2 w2 2"]:
        """The true displacement in pixels of what is seen in frame t, from t to t + step, as (x, y).

        `stride` samples every so many pixels in both directions.
        """
        seen = self.instances[:-step, ::stride, ::stride]
        height, width = self.instances.shape[1:]
        y, x = np.mgrid[0:height:stride, 0:width:stride].astype(np.float32)
        square = np.concatenate([self.affines, np.broadcast_to([[[[0, 0, 1.0]]]], (*self.affines.shape[:2], 1, 3))], 2)
        motion = (square[step:] @ np.linalg.inv(square[:-step]) - np.eye(3)).astype(np.float32)
        flow = np.zeros((*seen.shape, 2), np.float32)
        for t, moved in enumerate(motion):
            for identity, m in enumerate(moved):
                if np.abs(m[:2]).max() > 1e-9:
                    here = seen[t] == identity
                    flow[t, here] = (m[:2, :2] @ np.stack([x[here], y[here]]) + m[:2, 2:]).T
        return flow


def render(scene: Scene, width: int = REFERENCE_WIDTH, height: int = REFERENCE_HEIGHT) -> Rendering:
    """Draw every frame of a scene at the size asked for (the aspect of 4:3 is the caller's to keep)."""
    unit = height / REFERENCE_HEIGHT
    centre = np.array([REFERENCE_WIDTH, REFERENCE_HEIGHT]) / 2
    margin = 1.6  # the background is painted larger than the frame, so that a moving camera never sees its edge
    size = int(REFERENCE_WIDTH * margin), int(REFERENCE_HEIGHT * margin)
    canvas = cv2.cvtColor(assets.paint_background(scene.background, *size), cv2.COLOR_RGB2RGBA)
    offset = np.array([REFERENCE_WIDTH, REFERENCE_HEIGHT]) * (margin - 1) / 2
    names = scene.instances()
    frames = np.empty((scene.frames, height, width, 3), np.uint8)
    instances = np.zeros((scene.frames, height, width), np.uint8)
    affines = np.zeros((scene.frames, len(names) + 1, 2, 3))
    sprites = [item.sprite() for item in scene.items]
    shadows = [_shadow(image) if item.shadow else None for item, (image, _) in zip(scene.items, sprites, strict=True)]
    # nothing of the background changes while the camera rests: draw it once
    resting = np.ptp(scene.camera, axis=0).max() < 1e-9
    backdrop = None
    for t in range(scene.frames):
        shift, zoom = scene.camera[t, :2], scene.camera[t, 2]
        world = _similarity(zoom * unit, 0.0, -(centre + offset), (centre + shift) * unit)
        affines[t, 0] = world
        if backdrop is None or not resting:
            backdrop = cv2.warpAffine(canvas, world, (width, height), flags=cv2.INTER_LINEAR,
                                      borderMode=cv2.BORDER_REFLECT)
        image = backdrop.copy()
        order = sorted(range(len(scene.items)), key=lambda i: scene.items[i].depth[t])
        near = 1 + scene.parallax * (zoom - 1)
        for i in order:
            item = scene.items[i]
            if item.shown is not None and not item.shown[t]:
                continue
            x, y, scale, angle = item.track[t]
            place = (centre + shift + (np.array([x, y]) - centre) * zoom * near) * unit
            sprite, origin = sprites[i]
            size = scale * zoom * near * unit
            matrix = _similarity(size, angle, -np.array(origin), place)
            if shadows[i] is not None:
                lift = 0.0 if item.lift is None else item.lift[t]
                fall = np.array([2.0 + 0.1 * lift, 3.0 + lift]) * unit * zoom
                under = _similarity(size, angle, -np.array(origin) - SHADOW_BORDER, place + fall)
                _compose(image, None, shadows[i] * item.shadow, under, 0)
            _compose(image, instances[t], sprite, matrix, names.index(item.instance) + 1)
            affines[t, names.index(item.instance) + 1] = matrix
        frames[t] = np.clip(image[..., :3], 0, 255)
    return Rendering(frames, instances, _hold(affines))


SHADOW_BORDER = 6


def _shadow(sprite: np.ndarray) -> np.ndarray:
    alpha = cv2.copyMakeBorder(sprite[..., 3], *[SHADOW_BORDER] * 4, cv2.BORDER_CONSTANT)
    soft = cv2.GaussianBlur(alpha, (0, 0), 2.2)
    return np.concatenate([np.zeros((*soft.shape, 3), np.float32), soft[..., None]], -1)


def _similarity(scale: float, angle: float, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The 2 x 3 matrix of x -> scale * rotate(angle) (x + before) + after."""
    radians = np.deg2rad(angle)
    linear = scale * np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    return np.concatenate([linear, (linear @ before + after)[:, None]], 1)


def _compose(image: np.ndarray, ids: np.ndarray | None, sprite: np.ndarray, matrix: np.ndarray, identity: int) -> None:
    """Draw a premultiplied sprite over the image, only inside its own bounding box.

    The image has four channels like the sprite (its fourth is never read): whole rows then multiply at once.
    """
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [sprite.shape[1], 0], [0, sprite.shape[0]], [sprite.shape[1], sprite.shape[0]]])
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, [width, height])
    if left >= right or top >= bottom:
        return
    local = matrix.copy()
    local[:, 2] -= [left, top]
    patch = cv2.warpAffine(sprite, local, (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_CONSTANT)
    alpha = patch[..., 3]
    keep = 1 - alpha
    view = image[top:bottom, left:right]
    view *= cv2.merge((keep, keep, keep, keep))
    view += patch
    if ids is not None:
        ids[top:bottom, left:right][alpha > 0.5] = identity


def _hold(affines: np.ndarray) -> np.ndarray:
    """An instance that is not drawn in a frame rests where it was drawn last, or will be drawn first: what appears or
    goes has no flow."""
    for identity in range(affines.shape[1]):
        drawn = np.flatnonzero(np.abs(affines[:, identity]).sum((1, 2)))
        if len(drawn) == 0:
            affines[:, identity] = np.array([[1.0, 0, 0], [0, 1.0, 0]])
            continue
        before = np.searchsorted(drawn, np.arange(len(affines)), side="right") - 1
        affines[:, identity] = affines[drawn[np.maximum(before, 0)], identity]
    return affines
