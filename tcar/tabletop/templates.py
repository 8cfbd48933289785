"""The actions of Tabletop: its classes, by the index of the real label list, and the twin families that render them."""

from tcar.tabletop import handling, meeting, moving
from tcar.tabletop.family import Family

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
    114: "Putting something similar to other things that are already on the table",
    146: "Taking one of many similar things on the table",
    148: "Taking something out of something",
    166: "Turning the camera left while filming something",
    167: "Turning the camera right while filming something",
    171: "Uncovering something",
}

FAMILIES: dict[str, Family] = {
    one.name: one
    for one in (
        moving.push_pull, moving.up_down, moving.converge, meeting.front_behind, meeting.over_next,
        meeting.closer_away, meeting.cover_uncover, meeting.collide_pass, handling.surface, handling.box,
        moving.turn_camera, moving.approach, moving.towards_camera, meeting.many_movers,
    )
}  # fmt: skip


def class_groups() -> dict[int, str]:
    """Class index -> the group whose rule decides it."""
    return {index: pair.group for f in FAMILIES.values() for pair in f.pairs for index in pair.twins}
