"""What is done to training frames, measured in pixels against the published recipe (rand-m7-n4-mstd0.5-inc1).

The formulas are those of the code that CAST and V-JEPA 2 released, written down anew: a level of 0 to 10 is drawn from
a normal distribution about the magnitude, and every operation has its own argument for a level.
"""

from collections import defaultdict

import numpy as np
import pytest
import torch

from tcar.data.augment import Augment
from tcar.data.views import AugmentConfig

SIDE, DRAWS = 96, 250
Y, X = np.mgrid[:SIDE, :SIDE].astype(float)
# Red and green tell the place of a pixel, the squares of blue show what sharpening does; no colour is that of the fill.
FRAME = np.stack([20 + 2 * X, 10 + 2 * Y, 150 + 60 * ((X // 8 + Y // 8) % 2)], axis=-1).astype(np.uint8)
WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
FILL = 128


def views(config: AugmentConfig, frames=FRAME[None], draws=DRAWS) -> np.ndarray:
    """Draw views of one clip, `[draws t s s 3]`."""
    clip, ids = torch.from_numpy(frames), [str(number) for number in range(draws)]
    return Augment(config, {})([clip] * draws, torch.zeros(draws, dtype=torch.long), ids, epoch=1)[0].numpy()


def affine(view: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The map that takes the places of a view to those of the frame (about its middle), and its shift in pixels."""
    inside = ~(view == FILL).all(axis=-1)
    inside[:2] = inside[-2:] = inside[:, :2] = inside[:, -2:] = False
    inside &= np.roll(inside, 3, 0) & np.roll(inside, -3, 0) & np.roll(inside, 3, 1) & np.roll(inside, -3, 1)
    given = np.stack([X, Y, np.ones_like(X)], axis=-1)[inside]
    taken = np.stack([(view[..., 0] - 20.0) / 2, (view[..., 1] - 10.0) / 2], axis=-1)[inside]
    found, *_ = np.linalg.lstsq(given, taken, rcond=None)
    return (found[:2].T, found[2]) if np.abs(given @ found - taken).max() < 0.8 else None


def geometric(view: np.ndarray) -> tuple[str, float] | None:
    """The geometric operation that made a view, and its level with its sign."""
    blue = view[..., 2][(view != FILL).any(axis=-1)].astype(int)
    if min((abs(blue - colour) < 4).mean() for colour in (150, 210)) < 0.2 or (found := affine(view)) is None:
        return None  # the colours of the squares are others
    (matrix, shift), turned = found, np.rad2deg(np.arcsin((found[0][0, 1] - found[0][1, 0]) / 2))
    if np.abs(matrix - np.eye(2)).max() + np.abs(shift).max() < 0.05:
        return None
    level = {"shear x": matrix[0, 1] / 0.03, "shear y": matrix[1, 0] / 0.03, "rotate": turned / 3,
             "translate x": shift[0] / (0.045 * SIDE), "translate y": shift[1] / (0.045 * SIDE)}  # fmt: skip
    if np.abs(matrix - np.eye(2)).max() < 0.02:
        name = max(("translate x", "translate y"), key=lambda key: abs(level[key]))
    elif min(abs(matrix[0, 1]), abs(matrix[1, 0])) > 0.05:
        name = "rotate"
    else:
        name = max(("shear x", "shear y"), key=lambda key: abs(level[key]))
    return name, level[name]


def equalized(values: np.ndarray) -> np.ndarray:
    """Spread values so that equal shares of the pixels have each brightness, the commonest one at the end."""
    counts = np.bincount(values.ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    return ((step // 2 + np.cumsum(counts) - counts) // step).clip(max=255)[values]


def coloured(frame: np.ndarray):
    """Name, levels and pixels of every operation on colours that does not blend."""
    values = frame.astype(int)
    low, high = values.min((0, 1)), values.max((0, 1))
    yield "autocontrast", 7, (values - low) * 255 / (high - low)
    yield "equalize", 7, np.stack([equalized(values[..., channel]) for channel in range(3)], axis=-1)
    yield "invert", 7, 255 - values
    for kept in range(5):  # bits: 4 less 0.4 a level, cut to a whole number
        yield "posterize", 10 if not kept else 10 * (4.5 - kept) / 4, values & (0xFF << (8 - kept))
    for threshold in range(0, 257):
        yield "solarize", (256 - threshold) / 25.6, np.where(values < threshold, values, 255 - values)
    for added in range(1, 111):
        yield "solarize add", added / 11, np.where(values < 128, np.minimum(values + added, 255), values)


def blended(frame: np.ndarray):
    """Name and the other end of every operation that blends the frame with something."""
    grey = (frame @ [0.299, 0.587, 0.114])[..., None]
    padded = np.pad(frame.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    nine = sum(np.roll(padded, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)) + 4 * padded
    smooth = frame.astype(float)
    smooth[1:-1, 1:-1] = nine[2:-2, 2:-2] / 13
    yield from (("brightness", 0 * frame.astype(float)), ("contrast", np.full(frame.shape, np.rint(grey.mean()))),
                ("colour", grey * np.ones(3)), ("sharpness", smooth))  # fmt: skip


def explained(view: np.ndarray, table: list) -> tuple[str, float] | None:
    """Which published operation made a view, and at what level, signed where it goes both ways."""
    if found := geometric(view):
        return found
    for name, level, pixels in table:
        if np.abs(view - pixels).max() <= 1:
            return name, level
    for name, other in blended(FRAME):
        step = FRAME - other
        free = (view > 0) & (view < 255) & (np.abs(step) > 8)
        amount = np.median((view - other)[free] / step[free]) - 1 if free.any() else 0
        if np.abs(np.clip(other + (1 + amount) * step, 0, 255) - view).max() <= 2:
            return name, amount / 0.09
    return None


def test_every_operation_has_the_published_size_and_is_left_out_half_of_the_time():
    drawn = views(AugmentConfig(SIDE, **WHOLE, operations=1, magnitude=7))[:, 0]
    changed = [view for view in drawn if not np.array_equal(view, FRAME)]
    assert 95 < len(changed) < 155  # half of 250, within four standard deviations
    levels, table = defaultdict(list), list(coloured(FRAME))
    for view in changed:
        found = explained(view, table)
        assert found, "no published operation makes this view"
        levels[found[0]].append(found[1])
    assert len(levels) == 15
    assert all(5 <= abs(level) <= 9 for some in levels.values() for level in some), dict(levels)
    both_ways = ("shear x", "shear y", "rotate", "translate x", "translate y", "brightness", "contrast", "colour")
    signed = np.array([level for name in both_ways for level in levels[name]])
    assert 0.3 < (signed > 0).mean() < 0.7
    assert np.abs(signed).mean() == pytest.approx(7, abs=0.2) and 0.35 < np.abs(signed).std() < 0.65


def test_operations_come_before_the_crop_and_are_the_same_in_all_frames():
    frames = np.stack([FRAME] * 3)
    crop = {"scale": (0.2, 0.5), "ratio": (0.75, 4 / 3)}
    clip, given = torch.from_numpy(frames), torch.zeros(1, dtype=torch.long)
    changed = 0
    for name in map(str, range(20)):
        whole, _ = Augment(AugmentConfig(SIDE, **WHOLE, operations=4), {})([clip], given, [name], epoch=1)
        expected, _ = Augment(AugmentConfig(48, **crop), {})(list(whole), given, [name], epoch=1)
        found, _ = Augment(AugmentConfig(48, **crop, operations=4), {})([clip], given, [name], epoch=1)
        assert torch.equal(found, expected) and torch.equal(found, found[:, :1].expand_as(found))
        changed += not torch.equal(whole[0], clip)
    assert changed > 15  # 15 of 16 views have at least one of four operations


def test_an_erased_box_is_noise_of_the_published_size():
    drawn = views(AugmentConfig(SIDE, **WHOLE, erase=0.25), np.zeros((2, SIDE, SIDE, 3), np.uint8))
    erased = [view for view in drawn if view.any()]
    assert 35 < len(erased) < 90  # a quarter of 250, within four standard deviations
    shares, aspects, noise = [], [], []
    for view in erased:
        rows, columns = (np.flatnonzero(view.any(axis=axes)) for axes in ((0, 2, 3), (0, 1, 3)))
        box = view[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box.any(axis=-1).mean(axis=(1, 2)) > 0.98).all()  # one box in both frames
        assert np.mean(box[0] == box[1]) < 0.1
        shares.append(box.shape[1] * box.shape[2] / SIDE**2)
        aspects.append(box.shape[1] / box.shape[2])
        noise.append(box.reshape(-1, 3))
    assert 0.015 < min(shares) < 0.06 and 0.27 < max(shares) < 0.345 and 0.13 < np.mean(shares) < 0.2
    assert 0.25 < min(aspects) < 0.5 and 2 < max(aspects) < 3.8
    normalised = (np.concatenate(noise) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalised.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(normalised.std(0), 1, atol=0.06)  # bytes cut off what is beyond two deviations
