"""What a Tabletop scene is made of: silhouettes, textures, backgrounds and hands, each split by split.

Objects, textures and backgrounds of one vocabulary never occur in another, so that validation and test show things
that training never showed, and the stand-in pre-training of the small streams shares nothing with any of them.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

VOCABULARIES = ("pretrain", "train", "validation", "test")
SUPERSAMPLING = 4


def _superformula(m: float, n1: float, n2: float, n3: float, aspect: float = 1.0) -> np.ndarray:
    """Gielis' superformula (2003): one closed curve for discs, polygons, stars, leaves and flowers."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = (np.abs(np.cos(m * angle / 4)) ** n2 + np.abs(np.sin(m * angle / 4)) ** n3) ** (-1 / n1)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    points = points * np.array([aspect, 1.0])
    return points / np.abs(points).max()


def _profile(half_widths: list[float]) -> np.ndarray:
    """A turned body (bottle, vase, lamp) from the half widths at equal heights from the top down."""
    heights = np.linspace(-1, 1, len(half_widths))
    right = np.stack([np.array(half_widths), heights], 1)
    left = np.stack([-np.array(half_widths)[::-1], heights[::-1]], 1)
    return np.concatenate([right, left])


# name -> outline in the unit square; the vocabularies are disjoint by construction: each name stands in one of them
SHAPES: dict[str, dict[str, np.ndarray]] = {
    "pretrain": {
        "disc": _superformula(0, 1, 1, 1),
        "brick": _superformula(4, 14, 14, 14, 1.0) * [1.0, 0.62],
        "triangle": _superformula(3, 4.5, 10, 10),
        "four-star": _superformula(4, 0.7, 0.9, 0.9),
        "six-flower": _superformula(6, 1.2, 1.6, 1.6),
        "lens": _superformula(2, 0.9, 0.9, 0.9, 0.9),
        "vase": _profile([0.5, 0.3, 0.35, 0.7, 0.85, 0.8, 0.6, 0.45]),
        "tower": _profile([0.35, 0.4, 0.42, 0.45, 0.5, 0.55]),
        "hourglass": _profile([0.8, 0.6, 0.3, 0.3, 0.6, 0.8]),
        "axe": np.array([[-1, -0.6], [0.2, -0.9], [0.2, -0.2], [1, -0.1], [1, 0.2], [0.2, 0.2], [0.1, 0.9], [-1, 0.6]]),
        "step": np.array([[-1, -1], [0, -1], [0, 0], [1, 0], [1, 1], [-1, 1]]) * 0.9,
        "octagon": _superformula(8, 30, 16, 16),
    },
    "train": {
        "cup": _profile([0.85, 0.82, 0.78, 0.72, 0.66, 0.6]),
        "bottle": _profile([0.25, 0.25, 0.28, 0.5, 0.55, 0.55, 0.55, 0.5]),
        "block": _superformula(4, 20, 20, 20, 1.0) * [0.85, 0.85],
        "starfish": _superformula(5, 0.8, 1.1, 1.1),
        "egg": _superformula(0, 1, 1, 1, 0.72),
        "diamond": _superformula(4, 1, 1, 1, 0.8),
        "hexagon": _superformula(6, 22, 14, 14),
        "cross": np.array([[-.35, -1], [.35, -1], [.35, -.35], [1, -.35], [1, .35], [.35, .35], [.35, 1], [-.35, 1],
                           [-.35, .35], [-1, .35], [-1, -.35], [-.35, -.35]]),
        "house": np.array([[0, -1], [0.95, -0.15], [0.7, -0.15], [0.7, 0.9], [-0.7, 0.9], [-0.7, -0.15],
                           [-0.95, -0.15]]),
        "clover": _superformula(3, 1.0, 1.4, 1.4),
    },
    "validation": {
        "jar": _profile([0.5, 0.5, 0.42, 0.75, 0.8, 0.8, 0.8, 0.75]),
        "pentagon": _superformula(5, 12, 9, 9),
        "leaf": _superformula(2, 1.4, 1.4, 1.4, 0.75),
        "arrow": np.array([[0, -1], [0.9, 0], [0.4, 0], [0.4, 1], [-0.4, 1], [-0.4, 0], [-0.9, 0]]),
        "gear": _superformula(10, 3.2, 2.4, 2.4),
        "pill": _superformula(4, 5, 5, 5, 1.0) * [0.6, 1.0],
    },
    "test": {
        "lamp": _profile([0.3, 0.5, 0.7, 0.9, 0.2, 0.2, 0.5]),
        "bowl": _profile([0.95, 0.93, 0.85, 0.7, 0.45]) * [1.0, 0.7],
        "seven-star": _superformula(7, 1.0, 1.3, 1.3),
        "kite": np.array([[0, -1], [0.65, -0.3], [0, 1], [-0.65, -0.3]]),
        "bell": _profile([0.2, 0.45, 0.55, 0.6, 0.7, 0.95]),
        "heart": np.array([[0, -0.45], [0.35, -0.85], [0.8, -0.75], [0.95, -0.3], [0.6, 0.3], [0, 0.95],
                           [-0.6, 0.3], [-0.95, -0.3], [-0.8, -0.75], [-0.35, -0.85]]),
        "tee": np.array([[-0.9, -0.9], [0.9, -0.9], [0.9, -0.3], [0.3, -0.3], [0.3, 0.9], [-0.3, 0.9], [-0.3, -0.3],
                         [-0.9, -0.3]]),
        "drop": np.array([[0, -1], [0.35, -0.35], [0.6, 0.2], [0.5, 0.7], [0, 0.95], [-0.5, 0.7], [-0.6, 0.2],
                          [-0.35, -0.35]]),
    },
}

PATTERNS = {
    "pretrain": ("plain", "checker", "gradient", "marble"),
    "train": ("stripes", "dots", "halves"),
    "validation": ("rings", "grid"),
    "test": ("zigzag", "diagonals", "rays"),
}


@dataclass(frozen=True)
class Texture:
    """Two colours (RGB, 0 to 255) in a pattern; its name is what a caption calls it."""

    pattern: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    frequency: float

    @property
    def name(self) -> str:
        return f"{self.pattern} {'-'.join(f'{v:02x}' for v in self.first)}"


PUCK = Texture("plain", (150, 150, 152), (128, 128, 130), 1.0)


def hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """An RGB colour, 0 to 255, from hue, saturation and value in [0, 1]."""
    pixel = np.array([[[hue * 180 % 180, saturation * 255, value * 255]]], np.uint8)
    return tuple(int(v) for v in cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0])


def sample_texture(vocabulary: str, rng: np.random.Generator, avoid: tuple[Texture, ...] = ()) -> Texture:
    """A saturated texture of this vocabulary whose hue is at least 50 degrees from those to avoid.

    Hues come from 5 degree bins dealt out to the vocabularies in turn, so that no colour is shared either.
    """
    phase = VOCABULARIES.index(vocabulary)
    taken = [cv2.cvtColor(np.array([[t.first]], np.uint8), cv2.COLOR_RGB2HSV)[0, 0, 0] / 180 for t in avoid]
    while True:
        # bins 0 to 71 of the hue circle; those of skin (10 to 35 degrees) are left to hands
        hue = (4 * rng.integers(0, 18) + phase + 0.5) / 72
        if 0.02 < hue < 0.11:
            continue
        if all(min(abs(hue - other), 1 - abs(hue - other)) > 50 / 360 for other in taken):
            break
    first = hsv(hue, rng.uniform(0.7, 1.0), rng.uniform(0.65, 1.0))
    second = hsv(hue + rng.uniform(-0.02, 0.02), rng.uniform(0.2, 0.5), rng.uniform(0.75, 1.0))
    return Texture(str(rng.choice(PATTERNS[vocabulary])), first, second, float(rng.uniform(2.0, 3.5)))


def paint(texture: Texture, size: int) -> np.ndarray:
    """The texture's albedo as uint8 [size, size, 3]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    wave = 2 * np.pi * texture.frequency
    radius = np.hypot(x, y)
    weight = {
        "plain": lambda: np.zeros_like(x),
        "checker": lambda: np.sign(np.sin(wave * x) * np.sin(wave * y)),
        "gradient": lambda: 2.0 * (x + y),
        "marble": lambda: np.sin(wave * x + 2.5 * np.sin(wave * 0.7 * y)),
        "stripes": lambda: np.sign(np.sin(wave * y)),
        "dots": lambda: np.where(np.sin(wave * x) * np.sin(wave * y) > 0.45, 1.0, -1.0),
        "halves": lambda: np.sign(x),
        "rings": lambda: np.sign(np.sin(2 * wave * radius)),
        "grid": lambda: np.where((np.abs(np.sin(wave * x)) < 0.3) | (np.abs(np.sin(wave * y)) < 0.3), 1.0, -1.0),
        "zigzag": lambda: np.sign(np.sin(wave * y + 2.0 * np.abs(np.mod(x * 6, 2) - 1))),
        "diagonals": lambda: np.sign(np.sin(wave * 0.8 * (x + y))),
        "rays": lambda: np.sign(np.sin(6 * np.arctan2(y, x))),
    }[texture.pattern]()
    weight = (np.clip(weight, -1, 1)[..., None] + 1) / 2
    return ((1 - weight) * np.array(texture.first) + weight * np.array(texture.second)).astype(np.uint8)


@lru_cache(maxsize=4096)
def object_sprite(vocabulary: str, shape: str, texture: Texture, radius: int) -> np.ndarray:
    """An object as float32 premultiplied RGBA [2 radius + 4, 2 radius + 4, 4], colours 0 to 255, alpha 0 to 1."""
    size = 2 * radius + 4
    fine = size * SUPERSAMPLING
    outline = SHAPES[vocabulary][shape] * radius * SUPERSAMPLING + fine / 2
    mask = np.zeros((fine, fine), np.uint8)
    cv2.fillPoly(mask, [outline.round().astype(np.int32)], 255)
    inner = cv2.erode(mask, np.ones((5, 5), np.uint8))
    colour = paint(texture, fine).astype(np.float32)
    y, x = np.mgrid[0:fine, 0:fine] / fine - 0.5
    colour *= (1.0 - 0.35 * np.clip(x + y, -0.6, 0.8))[..., None]  # light from the upper left
    colour[inner == 0] *= 0.45  # a dark rim: nothing melts into its background
    return _premultiply(colour, mask, size)


def _premultiply(colour: np.ndarray, mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    size = (size, size) if isinstance(size, int) else size
    alpha = mask.astype(np.float32)[..., None] / 255
    return cv2.resize(np.concatenate([np.clip(colour, 0, 255) * alpha, alpha], -1), size, interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=1024)
def cloth_sprite(texture: Texture, width: int, height: int) -> np.ndarray:
    """A cloth with soft folds and a wavy hem, premultiplied RGBA [height, width, 4]."""
    fine_w, fine_h = width * SUPERSAMPLING, height * SUPERSAMPLING
    y, x = np.mgrid[0:fine_h, 0:fine_w].astype(np.float32)
    x, y = x / fine_w, y / fine_h
    hem = 0.04 * np.sin(20 * x) + 0.05
    side = 0.03 * np.sin(16 * y) + 0.04
    mask = ((y > hem) & (y < 1 - hem) & (x > side) & (x < 1 - side)).astype(np.uint8) * 255
    albedo = cv2.resize(paint(texture, 64), (fine_w, fine_h)).astype(np.float32)
    albedo *= (0.85 + 0.15 * np.sin(14 * x + 5 * y))[..., None]
    return _premultiply(albedo, mask, (width, height))


@lru_cache(maxsize=1024)
def box_sprite(texture: Texture, width: int, height: int, front: bool) -> np.ndarray:
    """An open box seen slightly from above: its dark opening (front=False) or its front wall (front=True)."""
    fine_w, fine_h = width * SUPERSAMPLING, height * SUPERSAMPLING
    y, x = np.mgrid[0:fine_h, 0:fine_w].astype(np.float32)
    x, y = 2 * x / fine_w - 1, y / fine_h
    albedo = cv2.resize(paint(texture, 64), (fine_w, fine_h)).astype(np.float32)
    if front:
        mask = (y > 0.32) & (np.abs(x) < 0.97 - 0.1 * y)
        albedo[(y > 0.32) & (y < 0.38)] *= 0.6
    else:
        mask = (y > 0.1) & (y < 0.5) & (np.abs(x) < 0.8 + 0.5 * y)
        albedo *= 0.35
    return _premultiply(albedo, mask.astype(np.uint8) * 255, (width, height))


@dataclass(frozen=True)
class Skin:
    """Colours of one person: skin and sleeve, RGB 0 to 255, and which hand."""

    skin: tuple[int, int, int]
    sleeve: tuple[int, int, int]
    mirrored: bool


def sample_skin(rng: np.random.Generator) -> Skin:
    """A skin tone from light to dark, with a muted sleeve."""
    tone = rng.uniform(0, 1)
    skin = hsv(rng.uniform(0.035, 0.075), 0.32 + 0.32 * tone, 0.96 - 0.5 * tone)
    return Skin(skin, hsv(rng.uniform(0, 1), rng.uniform(0.05, 0.3), rng.uniform(0.25, 0.8)), bool(rng.random() < 0.5))


HAND_WIDTH, HAND_LENGTH, HAND_ORIGIN = 60, 210, (30, 30)  # pixels of the sprite; the origin is the point of contact


@lru_cache(maxsize=512)
def hand_sprite(skin: Skin, posture: str, layer: str) -> np.ndarray:
    """A forearm with a hand that points up, premultiplied RGBA.

    An `open` hand touches at its fingertips, one in `grip` holds in its palm.

    `layer` is `palm` (arm, palm and what lies behind a held object) or `fingers` (what lies before it).
    """
    scale = 3
    shape = (HAND_LENGTH * scale, HAND_WIDTH * scale)
    mask, colour = np.zeros(shape, np.uint8), np.zeros((*shape, 3), np.float32)

    def stroke(start, end, width, tint=1.0, base=skin.skin):
        points = [tuple(int((HAND_ORIGIN[i] + p[i]) * scale) for i in (0, 1)) for p in (start, end)]
        for grown, shade in ((width + 1.6, 0.6), (width, tint)):  # a dark rim keeps fingers apart
            one = np.zeros(shape, np.uint8)
            cv2.line(one, points[0], points[1], 255, int(grown * scale))
            mask[one > 0] = 255
            colour[one > 0] = np.array(base, np.float32) * shade

    if posture == "open" and layer == "palm":
        stroke((0, 44), (0, 92), 15)
        stroke((0, 86), (0, 230), 21, base=skin.sleeve)
        stroke((0, 26), (0, 32), 22)
        stroke((9, 30), (16, 17), 6, 0.97)
        for offset, tip in ((-8.4, 7), (-2.8, 3), (2.8, 2.6), (8.4, 5)):
            stroke((offset, 22), (offset * 1.05, tip), 4.6, 1.03)
    elif posture == "grip" and layer == "palm":
        stroke((0, 22), (0, 80), 15)
        stroke((0, 74), (0, 230), 21, base=skin.sleeve)
        stroke((0, -3), (0, 8), 29, 0.9)
    elif posture == "grip" and layer == "fingers":
        for offset in (-11, -4, 3.2, 10):
            stroke((offset, -15), (offset * 0.9, -9.5), 5.2, 1.05)
        stroke((13, 10), (8, 5), 6.4, 1.03)
    if skin.mirrored:
        mask, colour = mask[:, ::-1], colour[:, ::-1]
    return _premultiply(colour, mask, (HAND_WIDTH, HAND_LENGTH))


@dataclass(frozen=True)
class Background:
    """A wall above a table; everything random in it comes from its seed."""

    vocabulary: str
    seed: int


@lru_cache(maxsize=256)
def paint_background(background: Background, width: int, height: int) -> np.ndarray:
    """The background as float32 [height, width, 3], 0 to 255; the table begins at 30% of the height.

    Each vocabulary has its own grain: fine noise, planks, tiles or soft clouds.
    """
    rng = np.random.default_rng([VOCABULARIES.index(background.vocabulary), background.seed])
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / height, y / height
    grain = {
        "pretrain": lambda: cv2.GaussianBlur(rng.normal(0, 40, (height, width)).astype(np.float32), (0, 0), 2),
        "train": lambda: 7 * np.sin(2 * np.pi * y * rng.uniform(6, 12) + np.sin(3 * x + rng.uniform(0, 6))),
        "validation": lambda: 12 * ((np.mod(x * 5, 1) < 0.05) | (np.mod(y * 5, 1) < 0.05)).astype(np.float32),
        "test": lambda: cv2.GaussianBlur(rng.normal(0, 160, (height, width)).astype(np.float32), (0, 0), 7),
    }[background.vocabulary]()
    wall = np.array(hsv(rng.uniform(0, 1), rng.uniform(0.03, 0.2), rng.uniform(0.45, 0.9)), np.float32)
    table = np.array(hsv(rng.uniform(0, 1), rng.uniform(0.05, 0.3), rng.uniform(0.35, 0.85)), np.float32)
    image = np.where((y < 0.3)[..., None], wall, table)
    image = image + grain[..., None] + 12 * (x[..., None] - 0.6) * rng.uniform(-1, 1)
    return np.clip(image, 0, 255).astype(np.float32)
