"""The parameter files of the runs on the real dataset that come with the project, as notebooks and pipeline find them.

Nothing heavy is imported here: the pipeline asks for these files before it loads anything else.
"""

from pathlib import Path

PLANS = ("ssv2", "ssv2_vjepa2")
CLASSES = 174  # of Something-Something-V2


def plan_files(root: Path) -> dict[str, Path]:
    """Give the parameter file of each plan in the project's folder."""
    return {name: root / "params" / f"{name}.yaml" for name in PLANS}
