"""The actions of Tabletop: each twin family draws one scene from a seed and renders it once for each of its classes.

A family is a function `(stage) -> {class index: Scene}`; the classes of one family share everything but one factor. The
indices are those of the real label list, where the same texts stand (see `LABELS`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tcar.tabletop import assets
from tcar.tabletop.scene import Item, Scene
from tcar.tabletop.stage import Stage, name

# index in the real list of 174 classes -> template text
LABELS = {
    0: "Approaching something with your camera",
    6: "Covering something with something",
    17: "Holding something behind something",
    18: "Holding something in front of something",
    19: "Holding something next to something",
    20: "Holding something over something",
    32: "Moving away from something with your camera",
    36: "Moving something and something away from each other",
    37: "Moving something and something closer to each other",
    38: "Moving something and something so they collide with each other",
    39: "Moving something and something so they pass each other",
    40: "Moving something away from something",
    41: "Moving something away from the camera",
    42: "Moving something closer to something",
    43: "Moving something down",
    44: "Moving something towards the camera",
    45: "Moving something up",
    47: "Picking something up",
    68: "Pretending to pick something up",
    72: "Pretending to put something into something",
    74: "Pretending to put something on a surface",
    82: "Pretending to take something out of something",
    86: "Pulling something from left to right",
    87: "Pulling something from right to left",
    93: "Pushing something from left to right",
    94: "Pushing something from right to left",
    106: "Putting something into something",
    109: "Putting something on a surface",
    148: "Taking something out of something",
    166: "Turning the camera left while filming something",
    167: "Turning the camera right while filming something",
    171: "Uncovering something",
}


# Evidence, as `probes` names it, that cannot tell two twins apart by construction. What a file weighs, how long and how
# bright it is are nuisances everywhere but where the picture itself decides.
NUISANCES = frozenset({"file size", "bit rate", "length", "brightness"})
# An exact reversal shows the same frames in another order. Its first frame is another matter: a motion that gets
# somewhere begins elsewhere, so a start within a range R tells a travel D with up to 1/2 + D / 2R.
REVERSAL = NUISANCES | {"single frame", "bag of frames"}
SAME_FLOW = NUISANCES | {"true flow", "hand position"}


@dataclass(frozen=True)
class Family:
    """Classes that share a seed: which group they belong to, and which two differ in one factor only (twins).

    `blind` holds, for each pair of twins, the evidence that cannot tell them apart.
    """

    name: str
    group: str
    twins: tuple[tuple[int, int], ...]
    draw: Callable[[Stage], dict[int, Scene]]
    blind: tuple[frozenset[str], ...]

    @property
    def classes(self) -> list[int]:
        return [index for pair in self.twins for index in pair]


FAMILIES: dict[str, Family] = {}


def family(group: str, *twins: tuple[int, int], blind: frozenset[str] | tuple[frozenset[str], ...]):
    """Register a twin family; `twins` are pairs of class indices that differ in one factor, `blind` the evidence that
    cannot tell them, for all pairs or pair by pair."""
    def register(draw):
        each = blind if isinstance(blind, tuple) else (blind,) * len(twins)
        FAMILIES[draw.__name__] = Family(draw.__name__, group, twins, draw, each)
        return draw
    return register


@family("direction", (93, 87), (94, 86), blind=REVERSAL)
def push_pull(s: Stage):
    """The hand stays on one side of the object: away from the hand is a push, towards it a pull (exact reversals)."""
    y, travel, wobble = s.u(64, 92), s.u(36, 48), s.tremor()
    # where it starts tells little of where it goes: the middle of the way varies more than half the way is long
    x = s.u(56, 108) + travel * (s.ramp() - 0.5)
    thing = s.thing("object", s.path(x, y))
    hand = s.hand(s.path(x - thing.size[0] - 2, y + wobble[:, 1] + 2, 1.0, s.u(52, 68)))
    push = s.scene([thing, *hand], ["object", "hand"], placeholders=[name(thing)])
    return {93: push, 87: push.reversed(), 94: push.mirrored(), 86: push.mirrored().reversed()}


@family("direction", (45, 43), blind=REVERSAL)
def up_down(s: Stage):
    x, middle, travel, wobble = s.u(55, 105), s.u(38, 90), s.u(18, 26), s.tremor()
    y = middle + travel * (0.5 - s.ramp())
    thing = s.thing("object", s.path(x + wobble[:, 0], y), depth=3.25, lift=(middle + travel / 2 - y) * 0.8)
    hand = s.hand(s.path(x + wobble[:, 0], y, 1.0, s.side() * s.u(25, 50)), "grip")
    up = s.scene([thing, *hand], ["object", "hand"], placeholders=[name(thing)])
    return {45: up, 43: up.reversed()}


@family("direction", (37, 36), blind=REVERSAL)
def converge(s: Stage):
    y, gap, travel, wobble = s.u(66, 88), s.u(17, 22), s.u(22, 32), s.tremor()
    middle = s.u(72, 88)
    left, right = middle - gap - travel * (1 - s.ramp()), middle + gap + travel * (1 - s.ramp())
    a, b = s.thing("object 0", s.path(left, y)), s.thing("object 1", s.path(right, y + s.u(-4, 4)))
    hands = s.hand(s.path(left - a.size[0] - 2, y + 3 + wobble[:, 1], 1.0, s.u(45, 60)), instance="hand 0")
    hands += s.hand(s.path(right + b.size[0] + 2, y + 3 + wobble[:, 0], 1.0, -s.u(45, 60)), instance="hand 1")
    scene = s.scene([a, b, *hands], ["object 0", "object 1", "hand 0", "hand 1"], placeholders=[name(a), name(b)])
    return {37: scene, 36: scene.reversed()}


def _held(s: Stage, x: float, y: float, depth: float, lift: float = 0.0) -> tuple[list[Item], str]:
    wobble = s.tremor(0.9)
    thing = s.thing("object 0", s.path(x + wobble[:, 0], y + wobble[:, 1]), depth + 0.25, lift=s.depth(lift))
    hand = s.hand(s.path(x + wobble[:, 0], y + wobble[:, 1], 1.0, s.side() * s.u(20, 45)), "grip", depth)
    return [thing, *hand], name(thing)


@family("relation", (18, 17), blind=frozenset({"length"}))
def front_behind(s: Stage):
    """The same two things overlap; only which of them is nearer differs."""
    x, y, side = s.u(65, 95), s.u(62, 80), s.side()
    still = s.thing("object 1", s.path(x, y), depth=2.0, radius=int(s.rng.integers(17, 20)))
    items, held = _held(s, x + side * s.u(12, 17), y - s.u(-4, 6), 3.0)
    behind = [replace(item, depth=item.depth - 2.0) for item in items]
    moving, names = ["object 0", "hand"], [held, name(still)]
    return {18: s.scene([still, *items], moving, placeholders=names),
            17: s.scene([still, *behind], moving, placeholders=names)}


@family("relation", (20, 19), blind=frozenset({"length"}))
def over_next(s: Stage):
    """The same held thing, above the other with its shadow on it, or beside it."""
    x, y, side = s.u(65, 95), s.u(80, 92), s.side()
    still = s.thing("object 1", s.path(x, y))
    items, held = _held(s, x, y, 3.0)
    up, beside = s.u(36, 42), s.u(30, 36)

    def shifted(dx, dy, lift):
        return [replace(i, track=i.track + [dx, dy, 0, 0], lift=s.depth(lift)) for i in items]
    moving, names = ["object 0", "hand"], [held, name(still)]
    return {20: s.scene([still, *shifted(s.u(-3, 3), -up, up - 6)], moving, placeholders=names),
            19: s.scene([still, *shifted(side * beside, s.u(-3, 3), 2.0)], moving, placeholders=names)}


@family("binding", (42, 40), blind=SAME_FLOW | REVERSAL)
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


@family("binding", (6, 171), blind=REVERSAL)
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


@family("binding", (38, 39), blind=SAME_FLOW | {"first frame", "single frame"})
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


def _down_and_up(s: Stage, boxed: bool) -> dict[tuple[int, int], Scene]:
    """One path of the hand, down and up again; in hand on the way down, in hand on the way up: four classes.

    The thing lies inside the hand's silhouette while it is held, so that the moving region is the same in all four.
    The path is the same backwards, so that putting down and picking up are exact reversals.
    """
    x, low, rise, wobble = s.u(55, 105), s.u(80, 90), s.u(44, 52), s.tremor()
    wobble = (wobble + wobble[::-1]) / 2
    s.end, turn = 1 - s.start, 0.5
    falling = s.ramp(s.start, turn - 0.08)
    y = low - rise * (2 - (falling + falling[::-1]))
    going_down = np.arange(s.frames) < s.frames * turn
    # the arm comes from the side, so that it does not hide what lies on the surface
    track = s.path(x + wobble[:, 0], y, 1.0, s.side() * s.u(48, 66))
    hand = s.hand(track, "grip", 3.0)
    thing = s.thing("object", s.path(x + wobble[:, 0], y), 3.25, radius=11, shadow=0.0)
    texture, width = s.texture(), int(s.rng.integers(46, 54))
    box = []
    if boxed:
        # the rim stands above the lowest reach, so that what is let go inside is out of sight
        place = s.path(x, low + 8)
        box = [Item("object 1", kind, place, s.depth(depth), (width, 50), s.vocabulary, "box", texture, shadow=0.0)
               for kind, depth in (("box-back", 1.0), ("box-front", 4.0))]
    lying = replace(thing, track=s.path(x, low), depth=s.depth(2.0), shadow=0.3)
    scenes = {}
    for down in (0, 1):
        for up in (0, 1):
            held = np.where(going_down, down == 1, up == 1)
            # what is not in hand lies on the surface, unless the hand holds it or it has gone with the hand
            seen = np.where(going_down, down == 0, up == 0) & (not boxed)
            where = np.where(held[:, None], thing.track, lying.track)
            depth = np.where(held, 3.25, 2.0)
            one = replace(thing, track=where, depth=depth, shown=held | seen)
            events = [("down", int(s.start * s.frames), int(turn * s.frames)),
                      ("up", int(turn * s.frames), int(s.end * s.frames))]
            scenes[down, up] = s.scene([*box, one, *hand], ["hand"] + ["object"] * (down or up), events=events,
                                       placeholders=[name(thing)] + ["box"] * boxed)
    return scenes


@family("pretence", (109, 47), (74, 68), blind=(REVERSAL | SAME_FLOW, SAME_FLOW))
def surface(s: Stage):
    scenes = _down_and_up(s, boxed=False)
    return {109: scenes[1, 0], 47: scenes[0, 1], 74: scenes[1, 1], 68: scenes[0, 0]}


# the thing that is pretended to be put is seen, the one that is pretended to be taken is not: the files may tell
@family("pretence", (106, 148), (72, 82), blind=(REVERSAL | SAME_FLOW, SAME_FLOW - NUISANCES | {"length"}))
def box(s: Stage):
    scenes = _down_and_up(s, boxed=True)
    return {106: scenes[1, 0], 148: scenes[0, 1], 72: scenes[1, 1], 82: scenes[0, 0]}


def _still_life(s: Stage) -> list[Item]:
    places = s.rng.permutation(np.array([[45, 62], [82, 78], [116, 60]]) + s.rng.uniform(-6, 6, (3, 2)))
    return [s.thing(f"object {i}", s.path(*place), 1.0 + 0.01 * place[1]) for i, place in enumerate(places[:2])]


@family("camera", (166, 167), blind=REVERSAL)
def turn_camera(s: Stage):
    """The whole scene shifts to the right when the camera turns left (exact reversals)."""
    items = _still_life(s) + s.idle_hand()
    travel, camera = s.u(26, 36), s.rest()
    camera[:, 0] = s.u(-20, 20) + travel * (s.ramp() - 0.5)
    camera[:, :2] += s.tremor(0.4)
    scene = s.scene(items, [], camera=camera, placeholders=[name(items[0])])
    return {166: scene, 167: scene.reversed()}


@family("camera", (0, 32), blind=REVERSAL)
def approach(s: Stage):
    """Everything grows, near layers more than far ones (exact reversals)."""
    items = _still_life(s) + s.idle_hand()
    camera = s.rest()
    camera[:, 2] = s.u(0.92, 1.18) * s.u(1.3, 1.45) ** (s.ramp() - 0.5)
    camera[:, :2] += s.tremor(0.4)
    scene = s.scene(items, [], camera=camera, parallax=0.35, placeholders=[name(items[0])])
    return {0: scene, 32: scene.reversed()}


@family("camera", (44, 41), blind=REVERSAL)
def towards_camera(s: Stage):
    """Only the thing and the hand that holds it grow (exact reversals)."""
    x, y, wobble = s.u(65, 95), s.u(58, 74), s.tremor()
    # things and hands are of many sizes, so that how large one is at first tells little of where it goes
    scale = s.u(0.8, 1.3) * s.u(1.45, 1.6) ** (s.ramp() - 0.5)
    still = s.thing("object 1", s.path(x + s.side() * s.u(44, 54), s.u(60, 84)), 1.0)
    thing = s.thing("object 0", s.path(x + wobble[:, 0], y + wobble[:, 1], scale), 3.25,
                    radius=int(s.rng.integers(9, 16)))
    hand = s.hand(s.path(x + wobble[:, 0], y + wobble[:, 1], scale * s.u(0.8, 1.25), s.side() * s.u(15, 40)), "grip")
    scene = s.scene([still, thing, *hand], ["object 0", "hand"], placeholders=[name(thing)])
    return {44: scene, 41: scene.reversed()}


def class_groups() -> dict[int, str]:
    """Class index -> the group whose rule decides it."""
    return {index: f.group for f in FAMILIES.values() for index in f.classes}
