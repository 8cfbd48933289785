"""Contents as one dictionary for JSON, small enough to lie in a notebook or a file.

Pictures become one sprite a clip, masks outlines, maps and weights bytes with a scale, deflated. What is above the size
that a clip may have is told more coarsely, and the footer says so.
"""

import base64
import json
import zlib
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from math import ceil, sqrt

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image

from tcar.viewer.contents import Contents, Series, ShownClip, ShownMap
from tcar.viewer.tokens import reading

LARGEST = 950_000  # bytes of a clip, as text: with the module, which every file has once, a file is under 1 MB
LONGEST_SIDE = 320  # pixels of a picture; a screen shows two beside one another
COARSE = 0.75  # pixels by which an outline may leave the mask's edge
LEVELS = 63  # of a weight's root: small weights are told as well as large ones
LEAST = 0.25  # bytes that a weight above 0 takes at least, deflated


@dataclass(frozen=True)
class Detail:
    """How finely a clip is told: each head or their mean, all keys or the strongest, the side of maps, of pictures."""

    heads: bool = True
    keys: int | None = None
    cells: int = 28
    quality: int = 60

    def remarks(self, contents: Contents) -> list[str]:
        """What the footer has to say of what is left out."""
        limit = "for a file under 1 MB a clip"
        said = []
        if any(clip.attention for clip in contents.clips):
            if not self.heads:
                said.append(f"Attention is the mean of the heads, {limit}.")
            if self.keys:
                said.append(f"Of attention, the {self.keys} strongest keys of each query are kept, {limit}.")
        sides = {side for clip in contents.clips for shown in clip.maps for side in shown.values.shape[1:]}
        if max(sides, default=0) > self.cells:
            said.append(f"Maps are averaged to at most {self.cells} cells a side.")
        if self.quality < Detail.quality:
            said.append(f"Pictures are of low quality, {limit}.")
        return said


LADDER = (
    Detail(), Detail(heads=False), *(Detail(heads=False, keys=keys) for keys in (128, 64, 32, 16)),
    *(Detail(heads=False, keys=keys, cells=14) for keys in (16, 8)),
    *(Detail(heads=False, keys=8, cells=14, quality=quality) for quality in (40, 20)),
)  # fmt: skip


def pack(contents: Contents) -> dict:
    """Return what the viewer's module reads: plain data for `json.dumps`.

    The first rung of the ladder on which the whole is at most 1 MB a clip; the last one, where none is.
    """
    base = _base(contents)
    basics = [_clip(clip) for clip in contents.clips]
    sprites: dict[int, list[dict]] = {}
    for detail in LADDER:
        if detail.heads and LEAST * _weights(contents) > LARGEST * len(basics):
            continue  # would be too large, and takes long to find out
        if detail.quality not in sprites:
            sprites[detail.quality] = [_sprite(_small(clip.frames), detail.quality) for clip in contents.clips]
        clips = [
            basic | {"sprite": sprite} | _explained(clip, contents, detail)
            for clip, basic, sprite in zip(contents.clips, basics, sprites[detail.quality], strict=True)
        ]
        packed = base | {"clips": clips}
        packed["footer"] = base["footer"] | {"remarks": [*contents.footer.remarks, *detail.remarks(contents)]}
        if len(as_json(packed)) <= LARGEST * len(clips):
            break
    return packed


def as_json(packed: dict) -> str:
    """Return the text of packed contents, without anything that a script element in HTML would take for its end."""
    return json.dumps(packed, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def deflated(content: bytes) -> str:
    """Return bytes as short text, that the module inflates."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _base(contents: Contents) -> dict:
    footer, point = contents.footer, contents.point
    return {
        "title": contents.title, "group": contents.group, "target": contents.target, "against": contents.against,
        "wrong": contents.wrong, "point": None if point is None else [float(axis) for axis in point],
        "streams": list(contents.streams), "grids": {stream: list(grid) for stream, grid in contents.grids.items()},
        "windows": {
            direction: None if window is None else _numbers(np.packbits(window))
            for direction, window in contents.windows.items()
        },
        "answers": {
            swap: [[text, round(float(probability), 4)] for text, probability in answers]
            for swap, answers in contents.answers.items()
        },
        "footer": {
            "commit": footer.commit, "synthetic": footer.synthetic,
            "parameters": {name: str(value) for name, value in footer.parameters.items()},
        },
    }  # fmt: skip


def _weights(contents: Contents) -> int:
    return sum(int(np.count_nonzero(one)) for clip in contents.clips for one in clip.attention.values())


def _clip(clip: ShownClip) -> dict:
    """What is told of a clip at any detail."""
    return {
        "name": clip.name, "label": clip.label, "seconds": clip.seconds, "moment": clip.moment,
        "masks": deflated(json.dumps(_outlines(clip), separators=(",", ":")).encode()),
        "events": [[name, _short(start), _short(end)] for name, start, end in clip.events],
        "probability": clip.probability and _series(clip.probability),
        "importance": {method: _series(series) for method, series in clip.importance.items()},
    }  # fmt: skip


def _explained(clip: ShownClip, contents: Contents, detail: Detail) -> dict:
    return {
        "maps": [_map(shown, detail.cells) for shown in clip.maps],
        "attention": {name: _attention(name, weights, contents, detail) for name, weights in clip.attention.items()},
    }  # fmt: skip


def _small(frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Return the frames with no side longer than the largest one shown."""
    height, width = _shown_size(frames)
    if (height, width) == frames.shape[1:3]:
        return frames
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def _shown_size(frames: np.ndarray) -> tuple[int, int]:
    height, width = frames.shape[1:3]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _sprite(frames: UInt8[np.ndarray, "t h w 3"], quality: int) -> dict:
    """Return all frames as one picture, row by row in columns about as many as rows."""
    count, height, width, _ = frames.shape
    columns = ceil(sqrt(count))
    rows = ceil(count / columns)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = frames
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    file = BytesIO()
    Image.fromarray(sheet).save(file, "WEBP", quality=quality, method=4)
    picture = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"picture": picture, "count": count, "columns": columns, "width": width, "height": height}


def _outlines(clip: ShownClip) -> dict[str, list]:
    """Return by mask, frame by frame, its outlines as [x, y, x, y, ...] in pixels; 0: as in the frame before."""
    told = {}
    for name, mask in clip.masks().items():
        cells = (np.arange(len(clip.frames)) + 0.5) * len(mask) / len(clip.frames)
        lines = [_polygons(mask[int(cell)], _shown_size(clip.frames)) for cell in cells]
        told[name] = lines[:1] + [0 if after == before else after for before, after in pairwise(lines)]
    return told


def _polygons(mask: Bool[np.ndarray, "h w"], shown: tuple[int, int]) -> list[list[int]]:
    picture = cv2.resize(mask.astype(np.uint8), shown[::-1], interpolation=cv2.INTER_NEAREST)
    found, _ = cv2.findContours(picture, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [cv2.approxPolyDP(line, COARSE, True).ravel().tolist() for line in found]


def _map(shown: ShownMap, cells: int) -> dict:
    values = _averaged(shown.values.astype(np.float32), cells)
    scale = float(np.abs(values).max())
    return {
        "method": shown.method, "stream": shown.stream, "signed": shown.signed, "passed": shown.passed,
        "note": shown.note, "shape": list(values.shape), "scale": _short(scale),
        "values": _numbers(np.rint(values / (scale or 1) * 127).astype(np.int8)),
    }  # fmt: skip


def _averaged(values: Float[np.ndarray, "t y x"], cells: int) -> Float[np.ndarray, "t y2 x2"]:
    """Return a map with at most so many cells a side, each the mean of what it covers."""
    height, width = (min(side, cells) for side in values.shape[1:])
    if (height, width) == values.shape[1:]:
        return values
    return np.stack([cv2.resize(moment, (width, height), interpolation=cv2.INTER_AREA) for moment in values])


def _attention(name: str, weights: Float[np.ndarray, "h n m"], contents: Contents, detail: Detail) -> dict:
    """Return the roots of a block's weights as bytes; where not all keys are kept, with the numbers of those."""
    readers, keys = reading(name, weights.shape, contents.streams, contents.grids)
    told = weights if detail.heads else weights.mean(axis=0, keepdims=True)
    scale = float(told.max())
    levels = np.rint(np.sqrt(told / (scale or 1)) * LEVELS).astype(np.uint8)
    packed = {
        "readers": readers, "keys": keys, "heads": len(weights), "shape": list(told.shape), "scale": _short(scale),
        "levels": LEVELS,
    }  # fmt: skip
    if not detail.keys or detail.keys >= told.shape[2]:
        return packed | {"values": _numbers(levels)}
    strongest = np.sort(np.argpartition(told, -detail.keys, axis=2)[..., -detail.keys :], axis=2)
    kept = np.take_along_axis(levels, strongest, axis=2)
    return packed | {"kept": detail.keys, "keep": _numbers(strongest.astype("<u2")), "values": _numbers(kept)}


def _numbers(array: Shaped[np.ndarray, "..."]) -> str:
    return deflated(np.ascontiguousarray(array).tobytes())


def _series(series: Series) -> list[list[float]]:
    return [[_short(value) for value in part] for part in series]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
