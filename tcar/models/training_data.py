"""What a kept model was trained on, and in what a video is unlike it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

UNITS = {"frames": "frames", "seconds": "seconds", "rate": "frames a second"}
SLACK = 0.05  # share by which a video may leave a range before it counts as outside


@dataclass(frozen=True)
class TrainingData:
    """The training clips of a model: their dataset in words, whether they are synthetic, and their smallest and largest
    number of frames, seconds and frames a second (by the names of `UNITS`, where they are known).

    Raises ValueError for ranges of another form.
    """

    dataset: str
    synthetic: bool
    ranges: Mapping[str, list[float]] = field(default_factory=dict)

    def __post_init__(self):
        for name, ends in self.ranges.items():
            if name not in UNITS or len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
                raise ValueError(f"training clips cannot have {name!r} from smallest to largest {ends}")

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "TrainingData | None":
        """Return what facts for a model card say of the training clips, None where they name no dataset."""
        if "dataset" not in facts:
            return None
        return cls(facts["dataset"], bool(facts.get("synthetic", False)), dict(facts.get("ranges", {})))

    def sentence(self) -> str:
        """Return what a user has to know before they believe an answer."""
        only = ": synthetic clips, so what it says of a real video is untested" if self.synthetic else ""
        return f"Trained on {self.dataset}{only}."

    def described(self) -> str:
        """Return the ranges in words, empty where none is known."""
        return ", ".join(_range(name, ends) for name, ends in self.ranges.items())

    def unlike(self, measured: Mapping[str, float]) -> Iterator[str]:
        """Yield a sentence for each measure of a video that lies outside of the training clips' range."""
        for name, ends in self.ranges.items():
            value = measured.get(name)
            if value is not None and not (1 - SLACK) * ends[0] <= value <= (1 + SLACK) * ends[1]:
                yield f"The video has {value:.4g} {UNITS[name]}, the training clips {_range(name, ends)}."


def _range(name: str, ends: list[float]) -> str:
    low, high = (f"{end:.4g}" for end in ends)
    return f"{low if low == high else f'{low} to {high}'} {UNITS[name]}"
