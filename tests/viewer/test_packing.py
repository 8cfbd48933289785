"""Packed contents hold what was given, within the error of their numbers, and within the size that a clip may have."""

import base64
import io
import json
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
import shown
from PIL import Image

from tcar.viewer import ShownClip, ShownMap
from tcar.viewer.packing import LARGEST, as_json, pack


def inflate(text, kind):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


@pytest.fixture(scope="module")
def demo():
    return shown.demo()


@pytest.fixture(scope="module")
def packed(demo):
    return pack(demo)


def test_frames_come_back_in_order(demo, packed):
    for clip, told in zip(demo.clips, packed["clips"], strict=True):
        sprite = told["sprite"]
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite["picture"].partition(",")[2]))).convert("RGB"))
        assert sprite["count"] == len(clip.frames)
        for number, frame in enumerate(clip.frames):
            row, column = divmod(number, sprite["columns"])
            seen = sheet[row * 120 : row * 120 + 120, column * 160 : column * 160 + 160]
            assert np.abs(seen.astype(int) - frame).mean() < 6


def test_outlines_enclose_their_masks(demo, packed):
    for clip, told in zip(demo.clips, packed["clips"], strict=True):
        masks = json.loads(zlib.decompress(base64.b64decode(told["masks"])))
        assert masks.keys() == {*clip.roles, "decisive"}
        for name, frames in masks.items():
            lines = None
            for mask, line in zip(clip.masks()[name], frames, strict=True):
                lines = lines if line == 0 else line
                filled = np.zeros(mask.shape, np.uint8)
                cv2.fillPoly(filled, [np.array(points).reshape(-1, 1, 2) for points in lines], 1)
                assert ((filled > 0) != mask).sum() <= 0.1 * mask.sum() + 3


def test_maps_and_weights_within_their_step(demo, packed):
    for clip, told in zip(demo.clips, packed["clips"], strict=True):
        for given, one in zip(clip.maps, told["maps"], strict=True):
            values = inflate(one["values"], np.int8).reshape(one["shape"]) / 127 * one["scale"]
            np.testing.assert_allclose(values, given.values, atol=one["scale"] / 250)
        for name, weights in clip.attention.items():
            one = told["attention"][name]
            roots = inflate(one["values"], np.uint8).reshape(one["shape"]) / one["levels"]
            np.testing.assert_allclose(roots, np.sqrt(weights / one["scale"]), atol=0.51 / one["levels"])
    assert packed["footer"]["remarks"] == []


def test_windows_bit_by_bit(demo, packed):
    for direction, window in demo.windows.items():
        bits = np.unpackbits(inflate(packed["windows"][direction], np.uint8))[: window.size]
        np.testing.assert_array_equal(bits.reshape(window.shape), window)


def test_above_the_largest_size_heads_then_keys_are_left_out_and_the_footer_says_so():
    contents = shown.full_size(blocks=8)
    packed = pack(contents)
    assert len(as_json(packed)) <= LARGEST
    remarks = " ".join(packed["footer"]["remarks"])
    assert "mean of the heads" in remarks and "strongest keys" in remarks and "28 cells" in remarks
    weights, one = contents.clips[0].attention["self0"].mean(axis=0), packed["clips"][0]["attention"]["self0"]
    assert one["heads"] == 8 and one["shape"] == [1, 589, 589]
    keep = inflate(one["keep"], "<u2").reshape(589, one["kept"])
    for reader in (0, 100, 588):
        assert {*keep[reader]} == {*np.argsort(weights[reader])[-one["kept"] :]}


def test_what_fits_keeps_its_heads():
    clip = replace(shown.small(0).clips[0], attention={"self0": np.full((4, 17, 17), 1 / 17, np.float32)})
    packed = pack(shown.small(0, clips=(clip, clip)))
    assert packed["clips"][0]["attention"]["self0"]["shape"] == [4, 17, 17]


def test_masks_of_another_size_and_rate_lie_over_the_whole_clip():
    mask = np.zeros((2, 4, 4), bool)
    mask[1, :2, :2] = True
    clip = ShownClip("clip", np.zeros((4, 8, 8, 3), np.uint8), roles={"hand": mask})
    packed = pack(shown.small(0, clips=(clip,), answers={"neither": [("a", 1.0)]}))
    frames = json.loads(zlib.decompress(base64.b64decode(packed["clips"][0]["masks"])))["hand"]
    assert frames[0] == [] and frames[1] == 0 and frames[3] == 0
    assert [min(frames[2][0]), max(frames[2][0])] == [0, 3]


def test_large_pictures_become_smaller():
    clip = ShownClip("clip", np.zeros((2, 480, 640, 3), np.uint8))
    packed = pack(shown.small(0, clips=(clip,), answers={"neither": [("a", 1.0)]}))
    assert (packed["clips"][0]["sprite"]["width"], packed["clips"][0]["sprite"]["height"]) == (320, 240)


def test_an_even_map_and_one_of_zeros():
    maps = (ShownMap("a", "motion", np.zeros((1, 2, 2))), ShownMap("a", "semantic", np.ones((1, 2, 2))))
    clip = ShownClip("clip", np.zeros((2, 8, 8, 3), np.uint8), maps=maps)
    told = pack(shown.small(0, clips=(clip,), answers={"neither": [("a", 1.0)]}))["clips"][0]["maps"]
    assert [one["scale"] for one in told] == [0, 1]
    assert inflate(told[1]["values"], np.int8).tolist() == [127] * 4
