"""What can be set of a dataset."""

from dataclasses import dataclass

from tcar.ground.settings import bounded


@dataclass(frozen=True)
class DataSettings:
    """Which clips, and how they are looked at."""

    dataset: str = bounded("tabletop", choices=("tabletop", "ssv2"))
    data_root: str = ""  # "" = data/ in the run's folder
    quarantine_threshold: float = bounded(0.02, minimum=0.0, maximum=1.0)  # share of clips that may be broken
    # Read with decord too, drawn by the seed; 0 = none. 0.1 s of a core a clip at 427 x 240.
    second_opinion_clips: int = bounded(200, minimum=0)
    contact_sheet_clips: int = bounded(32, minimum=1)
    upright: bool = True  # clips are turned as their files tell a player to; false: read as they are stored
