"""The real dataset as published, and the parameter files of the runs on it that come with the project.

Nothing heavy is imported here: the pipeline asks for these files before it loads anything else.
"""

from pathlib import Path

PLANS = ("ssv2", "ssv2_vjepa2")
CLASSES = 174  # of Something-Something-V2
CLIPS = {"train": 168_913, "validation": 24_777, "test": 27_157}
ALL_CLIPS = sum(CLIPS.values())


def plan_files(root: Path) -> dict[str, Path]:
    """Give the parameter file of each plan in the project's folder."""
    return {name: root / "params" / f"{name}.yaml" for name in PLANS}
