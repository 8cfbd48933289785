"""What can be set of Tabletop, and the names that are chosen from."""

from dataclasses import dataclass

from tcar.ground.settings import bounded

CONTROLS = ("reversed", "shuffled", "frozen", "background", "noise", "conflict")
# Families of Tabletop, each with its classes by the index of the real label list.
FAMILIES = {
    "push_pull": (93, 87, 94, 86), "up_down": (45, 43), "converge": (37, 36), "front_behind": (18, 17),
    "over_next": (20, 19), "closer_away": (42, 40), "cover_uncover": (6, 171), "collide_pass": (38, 39),
    "surface": (109, 47, 74, 68), "box": (106, 148, 72, 82), "turn_camera": (166, 167), "approach": (0, 32),
    "towards_camera": (44, 41), "many_movers": (114, 146),
}  # fmt: skip


@dataclass(frozen=True)
class TabletopSettings:
    """How Tabletop is rendered."""

    # 0-based, of the real label list; [] = all there are.
    classes: list[int] = bounded([], minimum=0, distinct=True)
    # Twin sets in each twin group; one set shows every class of its group once.
    train_sets: int = bounded(36, minimum=1)
    validation_sets: int = bounded(10, minimum=1)
    test_sets: int = bounded(26, minimum=1)
    width: int = bounded(160, minimum=32)  # pixels
    height: int = bounded(120, minimum=32)  # pixels
    frame_rate: int = bounded(12, minimum=1)  # frames a second
    lengths: list[int] = bounded([24, 32, 40], minimum=16, shortest=1)  # frames, even; one is drawn for each set
    difficulty: str = bounded("standard", choices=("easy", "standard", "hard"))
    # "" = none; else what the clips lose or gain, as tcar.tabletop.controls has it.
    control: str = bounded("", choices=("", *CONTROLS))
