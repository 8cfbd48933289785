"""Families that motion decides: exact reversals whose frames, as a set, are the same.

Where the hand is at first tells nothing: it comes from a place of its own, and goes to another one that is drawn alike.
"""

from dataclasses import replace

import numpy as np

from tcar.tabletop.family import MOTION, REVERSAL, Pair, family
from tcar.tabletop.scene import REFERENCE_HEIGHT, REFERENCE_WIDTH, Item
from tcar.tabletop.stage import Stage, name

_BLIND = REVERSAL | {"hand position"}
_TELLS = frozenset({"true flow", "ordered frames"})


def _reversal(twins: tuple[int, int]) -> Pair:
    return Pair(twins, MOTION, _TELLS, _BLIND)


@family(_reversal((93, 87)), _reversal((94, 86)))
def push_pull(s: Stage):
    """The hand stays on one side of the object: away from the hand is a push, towards it a pull (exact reversals)."""
    s.rest_longer()
    y, travel, wobble = s.u(64, 92), s.u(32, 42), s.tremor()
    # where it starts tells little of where it goes: the middle of the way varies more than half the way is long
    x = s.u(50, 112) + travel * (s.ramp() - 0.5)
    thing = s.thing("object", s.path(x, y))
    hand = s.hand(s.visit(s.path(x - thing.size[0] - 2, y + wobble[:, 1] + 2, 1.0, s.u(52, 68))))
    push = s.scene([thing, *hand], ["object", "hand"], placeholders=[name(thing)])
    return {93: push, 87: push.reversed(), 94: push.mirrored(), 86: push.mirrored().reversed()}


@family(_reversal((45, 43)))
def up_down(s: Stage):
    s.rest_longer()
    x, middle, travel, wobble = s.u(55, 105), s.u(38, 92), s.u(18, 26), s.tremor()
    y = middle + travel * (0.5 - s.ramp())
    thing = s.thing("object", s.path(x + wobble[:, 0], y), depth=3.25, lift=(middle + travel / 2 - y) * 0.8)
    hand = s.hand(s.visit(s.path(x + wobble[:, 0], y, 1.0, s.side() * s.u(25, 50))), "grip")
    up = s.scene([thing, *hand], ["object", "hand"], placeholders=[name(thing)])
    return {45: up, 43: up.reversed()}


@family(_reversal((37, 36)))
def converge(s: Stage):
    s.rest_longer()
    y, gap, travel, wobble = s.u(66, 88), s.u(14, 34), s.u(16, 24), s.tremor()
    middle = s.u(74, 86)
    left, right = middle - gap - travel * (1 - s.ramp()), middle + gap + travel * (1 - s.ramp())
    a, b = s.thing("object 0", s.path(left, y)), s.thing("object 1", s.path(right, y + s.u(-4, 4)))
    hands = s.hand(s.visit(s.path(left - a.size[0] - 2, y + 3 + wobble[:, 1], 1.0, s.u(45, 60))), instance="hand 0")
    hands += s.hand(s.visit(s.path(right + b.size[0] + 2, y + 3 + wobble[:, 0], 1.0, -s.u(45, 60))), instance="hand 1")
    scene = s.scene([a, b, *hands], ["object 0", "object 1", "hand 0", "hand 1"], placeholders=[name(a), name(b)])
    return {37: scene, 36: scene.reversed()}


def _still_life(s: Stage) -> list[Item]:
    places = s.rng.permutation(np.array([[45, 62], [82, 78], [116, 60]]) + s.rng.uniform(-14, 14, (3, 2)))
    return [s.thing(f"object {i}", s.path(*place), 1.0 + 0.01 * place[1]) for i, place in enumerate(places[:2])]


def _with_camera(hand: list[Item], camera: np.ndarray, parallax: float) -> list[Item]:
    """The hand of who films: it moves with the camera, so that on the screen it rests."""
    centre = np.array([REFERENCE_WIDTH, REFERENCE_HEIGHT]) / 2
    grown = camera[:, 2] * (1 + parallax * (camera[:, 2] - 1))
    items = []
    for item in hand:
        track = item.track.copy()
        track[:, :2] = centre + (track[:, :2] - centre - camera[:, :2]) / grown[:, None]
        track[:, 2] /= grown
        items.append(replace(item, track=track))
    return items


@family(_reversal((166, 167)))
def turn_camera(s: Stage):
    """The whole scene shifts to the right when the camera turns left (exact reversals)."""
    things = _still_life(s)
    travel, camera = s.u(26, 36), s.rest()
    camera[:, 0] = s.u(-20, 20) + travel * (s.ramp() - 0.5)
    camera[:, :2] += s.tremor(0.4)
    items = [*things, *_with_camera(s.idle_hand(), camera, 0.0)]
    scene = s.scene(items, [], camera=camera, placeholders=[name(things[0])])
    return {166: scene, 167: scene.reversed()}


@family(_reversal((0, 32)))
def approach(s: Stage):
    """Everything grows, near layers more than far ones (exact reversals)."""
    things, parallax = _still_life(s), 0.35
    camera = s.rest()
    camera[:, 2] = s.u(0.88, 1.22) * s.u(1.3, 1.45) ** (s.ramp() - 0.5)
    camera[:, :2] += s.tremor(0.4)
    items = [*things, *_with_camera(s.idle_hand(), camera, parallax)]
    scene = s.scene(items, [], camera=camera, parallax=parallax, placeholders=[name(things[0])])
    return {0: scene, 32: scene.reversed()}


@family(_reversal((44, 41)))
def towards_camera(s: Stage):
    """Only the thing and the hand that holds it grow (exact reversals)."""
    s.rest_longer()
    x, y, wobble = s.u(65, 95), s.u(58, 74), s.tremor()
    # things and hands are of many sizes, so that how large one is at first tells little of where it goes
    scale = s.u(0.8, 1.3) * s.u(1.45, 1.6) ** (s.ramp() - 0.5)
    still = s.thing("object 1", s.path(x + s.side() * s.u(44, 54), s.u(60, 84)), 1.0)
    thing = s.thing("object 0", s.path(x + wobble[:, 0], y + wobble[:, 1], scale), 3.25,
                    radius=int(s.rng.integers(9, 16)))
    track = s.path(x + wobble[:, 0], y + wobble[:, 1], scale * s.u(0.8, 1.25), s.side() * s.u(15, 40))
    hand = s.hand(s.visit(track), "grip")
    scene = s.scene([still, thing, *hand], ["object 0", "hand"], placeholders=[name(thing)])
    return {44: scene, 41: scene.reversed()}
