"""Families of one hand that goes down and up again, full or empty: putting, picking up, and pretending."""

from dataclasses import replace

import numpy as np

from tcar.tabletop.family import ANY_FRAME, NUISANCES, ONE_FRAME, ORDER, REVERSAL, SAME_FLOW, Pair, family
from tcar.tabletop.scene import Item, Scene
from tcar.tabletop.stage import Stage, name

_ORDERED = frozenset({"first frame", "ordered frames"})


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


@family(Pair((109, 47), ORDER, _ORDERED, REVERSAL | SAME_FLOW), Pair((74, 68), ONE_FRAME, ANY_FRAME, SAME_FLOW))
def surface(s: Stage):
    scenes = _down_and_up(s, boxed=False)
    return {109: scenes[1, 0], 47: scenes[0, 1], 74: scenes[1, 1], 68: scenes[0, 0]}


# the thing that is pretended to be put is seen, the one that is pretended to be taken is not: the files may tell
@family(
    Pair((106, 148), ORDER, _ORDERED, REVERSAL | SAME_FLOW),
    Pair((72, 82), ONE_FRAME, ANY_FRAME, SAME_FLOW - NUISANCES | {"length"}),
)
def box(s: Stage):
    scenes = _down_and_up(s, boxed=True)
    return {106: scenes[1, 0], 148: scenes[0, 1], 72: scenes[1, 1], 82: scenes[0, 0]}
