"""Families of things beside, before, under and among each other: where what a thing looks like decides."""

from dataclasses import replace

import numpy as np

from tcar.tabletop import assets
from tcar.tabletop.family import (
    ANY_FRAME,
    BOUND,
    NUISANCES,
    ORDER,
    REVERSAL,
    SAME_FLOW,
    WHAT_AND_WHERE,
    Pair,
    family,
)
from tcar.tabletop.scene import REFERENCE_HEIGHT, Item
from tcar.tabletop.stage import Stage, name

# The files and the brightness of a pair that one frame decides differ with the picture.
_FRAME_BLIND = SAME_FLOW - NUISANCES | {"length"}


def _held(s: Stage, x: float, y: float, wobble: np.ndarray, lift: float = 0.0) -> list[Item]:
    thing = s.thing("object 0", s.path(x + wobble[:, 0], y + wobble[:, 1]), 3.25, lift=s.depth(lift))
    return [thing, *s.hand(s.path(x + wobble[:, 0], y + wobble[:, 1], 1.0, s.side() * s.u(20, 45)), "grip", 3.0)]


@family(Pair((18, 17), WHAT_AND_WHERE, ANY_FRAME, _FRAME_BLIND))
def front_behind(s: Stage):
    """The same two things overlap; only which of them is nearer differs. Both tremble as one, so that what hides what
    does not show in the flow."""
    x, y, side, wobble = s.u(65, 95), s.u(62, 80), s.side(), s.tremor(0.9)
    still = s.thing("object 1", s.path(x + wobble[:, 0], y + wobble[:, 1]), 2.0, int(s.rng.integers(17, 20)))
    items = _held(s, x + side * s.u(12, 17), y - s.u(-4, 6), wobble)
    behind = [replace(item, depth=item.depth - 2.0) for item in items]
    moving, names = ["object 0", "object 1", "hand"], [name(items[0]), name(still)]
    return {18: s.scene([still, *items], moving, placeholders=names),
            17: s.scene([still, *behind], moving, placeholders=names)}


@family(Pair((20, 19), WHAT_AND_WHERE, ANY_FRAME, _FRAME_BLIND))
def over_next(s: Stage):
    """The same held thing in the same place; what rests lies below it, under its shadow, or beside it."""
    x, y = s.u(58, 102), s.u(46, 54)
    items = _held(s, x, y, s.tremor(0.9))
    below, beside, lift = s.u(36, 42), s.side() * s.u(32, 38), s.u(30, 36)
    under = s.thing("object 1", s.path(x + s.u(-3, 3), y + below))
    next_to = replace(under, track=s.path(x + beside, y + s.u(-3, 3)))
    high = [replace(item, lift=s.depth(lift)) for item in items]
    low = [replace(item, lift=s.depth(2.0)) for item in items]
    moving, names = ["object 0", "hand"], [name(items[0]), name(under)]
    return {20: s.scene([under, *high], moving, placeholders=names),
            19: s.scene([next_to, *low], moving, placeholders=names)}


@family(Pair((42, 40), BOUND, frozenset({"oracle"}), SAME_FLOW | REVERSAL))
def closer_away(s: Stage):
    """Three movers in three lanes with one silhouette; one is coloured, two are grey pucks, and at least one puck goes
    the other way. The coloured one counts: it nears the coloured reference or leaves it. The twin exchanges the
    colours of two movers that go opposite ways: the flow, and the reference, are the same. Each covers a stretch of its
    own, drawn alike for all, so that a set of frames without order shows the coloured one at no other places."""
    lanes = s.rng.permutation([42.0, 72.0, 102.0]) + s.rng.uniform(-2, 2, 3)
    side, travel = s.side(), s.u(16, 22)
    heading = np.array([1, -1, s.side()])
    s.end = 1 - s.start
    shape, radius = s.shape(), int(s.rng.integers(9, 11))
    colour = s.texture()
    movers = []
    for lane, way in enumerate(heading):
        x = 80 - side * 16 + s.u(-26, 26) + way * side * travel * (s.ramp() - 0.5)
        movers.append(s.thing(f"object {lane}", s.path(x, lanes[lane]), 2.0 + 0.1 * lanes[lane] / 100, radius,
                              shape=shape, texture=assets.PUCK))
    reference = s.thing("object 3", s.path(80 + side * s.u(58, 62), 73 + s.u(-4, 4)), 2.0, 15)
    hand = s.idle_hand()
    names = [f"{colour.name} {shape}", name(reference)]

    def coloured(which):
        items = [replace(m, texture=colour) if i == which else m for i, m in enumerate(movers)]
        return s.scene([*items, reference, *hand], [f"object {which}"], placeholders=names)
    return {42: coloured(0), 40: coloured(1)}


MOVERS = (3, 5, 9)  # in turn, set by set


@family(Pair((114, 146), BOUND, frozenset({"oracle"}), SAME_FLOW | REVERSAL | {"first frame"}))
def many_movers(s: Stage):
    """Many equal things pass up and down in three lanes; those of one lane are coloured. They come down to those on the
    table, or are taken up and away.

    The twin exchanges the colours of two lanes that go opposite ways: silhouettes and flow are the same. What leaves
    the picture at one edge comes in again at the other, so that every place is as likely at any moment: no frame, and
    no set of frames, tells where a lane goes. In the whole clip a thing travels at least once through the picture, and
    so past its neighbour's place: of nine things, three of a lane, between two of four moments it goes about as far as
    the next one is away, and frames alone do not say which is which.
    """
    count = MOVERS[s.number % len(MOVERS)]
    lanes = {3: (1, 1, 1), 5: (2, 2, 1), 9: (3, 3, 3)}[count]
    places = s.rng.permutation([32.0, 80.0, 128.0]) + s.rng.uniform(-8, 8, 3)
    heading = np.array([1, -1, s.side()])
    shape, radius, colour = s.shape(), int(s.rng.integers(8, 10)), s.texture()
    margin = radius + 10  # a thing, and its shadow, are out of sight when they change edges
    way = REFERENCE_HEIGHT + 2 * margin
    time = np.arange(s.frames) / s.frames
    movers, lane_of = [], []
    nearness = s.rng.permutation(count)  # which is the nearer tells nothing of its lane
    for lane, here in enumerate(lanes):
        start, travel = s.u(0, way), way * s.u(1.0, 1.4)
        for place in range(here):
            y = start + place * way / here + s.u(-4, 4) + heading[lane] * travel * time
            track = s.path(places[lane] + s.u(-3, 3), y % way - margin)
            movers.append(s.thing(f"object {len(movers)}", track, 2.0 + 0.01 * nearness[len(movers)], radius,
                                  shape=shape, texture=assets.PUCK))
            lane_of.append(lane)
    hand = s.idle_hand()
    events = [("motion", 0, s.frames)]

    def coloured(which):
        items = [replace(m, texture=colour) if lane == which else m for m, lane in zip(movers, lane_of, strict=True)]
        acting = [m.instance for m, lane in zip(movers, lane_of, strict=True) if lane == which]
        return s.scene([*items, *hand], acting, events=events, placeholders=[f"{colour.name} {shape}"],
                       variant=f"{count} movers")
    return {114: coloured(0), 146: coloured(1)}


@family(Pair((6, 171), ORDER, frozenset({"first frame", "ordered frames"}), REVERSAL))
def cover_uncover(s: Stage):
    """A cloth slides over a still thing that lies at either end of its way (exact reversals)."""
    side, y, wobble = s.side(), s.u(68, 88), s.tremor()
    middle, travel = s.u(76, 84), s.u(44, 52)
    size = (int(s.rng.integers(40, 46)), int(s.rng.integers(36, 42)))
    x = middle + side * travel * (s.ramp() - 0.5)
    still = s.thing("object 0", s.path(middle + side * travel / 2, y), 2.0, radius=12)
    cloth = Item("object 1", "cloth", s.path(x, y), s.depth(3.0), size, s.vocabulary, "cloth", s.texture())
    hand = s.hand(s.path(x + wobble[:, 0], y + 10 + wobble[:, 1], 1.0, s.side() * s.u(10, 30)), depth=4.0)
    scene = s.scene([still, cloth, *hand], ["object 1", "hand"], placeholders=[name(still), name(cloth)])
    return {6: scene, 171: scene.reversed()}


@family(
    Pair((38, 39), WHAT_AND_WHERE, frozenset({"bag of frames", "ordered frames"}),
         SAME_FLOW | {"first frame", "single frame"})
)
def collide_pass(s: Stage):
    """Two things with one silhouette meet behind a screen and part again: each back the way it came (they collided), or
    each onward (they passed). Trajectories and flow are the same; which texture comes out where differs."""
    y, reach, shape = s.u(70, 86), s.u(46, 54), s.shape()
    radius, middle = int(s.rng.integers(10, 12)), s.u(76, 84)
    inward = s.ramp(s.start, 0.5)
    outward = s.ramp(0.5, s.end)
    away = reach * (1 - inward + outward)
    colours = (s.texture(), s.texture())
    screen = Item("object 2", "cloth", s.path(middle, y - 4), s.depth(3.0), (34, 44), s.vocabulary, "screen",
                  s.texture())
    left = s.thing("object 0", s.path(middle - away, y), 2.0, radius, shape=shape, texture=colours[0])
    right = s.thing("object 1", s.path(middle + away, y), 2.1, radius, shape=shape, texture=colours[1])
    hand, half = s.idle_hand(), s.frames // 2
    before = np.arange(s.frames) < half
    names = [f"{c.name} {shape}" for c in colours]
    # at the exchange both things are wholly behind the screen, so a change of place there is never seen
    crossed = [replace(one, track=np.where(before[:, None], one.track, other.track),
                       depth=np.where(before, one.depth, other.depth))
               for one, other in ((left, right), (right, left))]
    moving = ["object 0", "object 1"]
    events = [("approach", int(s.start * s.frames), half), ("part", half, int(s.end * s.frames))]
    return {38: s.scene([left, right, screen, *hand], moving, events=events, placeholders=names),
            39: s.scene([*crossed, screen, *hand], moving, events=events, placeholders=names)}
