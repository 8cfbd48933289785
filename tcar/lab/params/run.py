"""The parameters of one run, and what follows from them."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tcar.data.settings import DataSettings
from tcar.fusion.settings import FusionSettings
from tcar.ground.processes import usable_cores
from tcar.ground.project import find_root
from tcar.lab.params.settings import FIELDS, GROUPS, Ablations, Common, Evaluation, FullSize, Interpretability, Search
from tcar.models.settings import BaselineSettings
from tcar.streams.settings import StreamSettings
from tcar.tabletop.settings import TabletopSettings
from tcar.train.settings import Recipe, TrainerSettings, WatchSettings

REHEARSAL = "rehearsal.json"  # lies in a dataset's folder that is a rendered imitation of the real one
SECRETS = tuple(name for name, declared in FIELDS.items() if declared.metadata.get("secret"))
HIDDEN = "(not shown)"


@dataclass(frozen=True)
class Params:
    """All parameters of one run, by group, and the folders that follow from them."""

    common: Common = Common()
    data: DataSettings = field(default_factory=DataSettings)
    tabletop: TabletopSettings = field(default_factory=TabletopSettings)
    streams: StreamSettings = field(default_factory=StreamSettings)
    full_size: FullSize = field(default_factory=FullSize)
    fusion: FusionSettings = field(default_factory=FusionSettings)
    training: Recipe = field(default_factory=Recipe)
    watching: WatchSettings = field(default_factory=WatchSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    baselines: BaselineSettings = field(default_factory=BaselineSettings)
    search: Search = field(default_factory=Search)
    evaluation: Evaluation = field(default_factory=Evaluation)
    ablations: Ablations = field(default_factory=Ablations)
    interpretability: Interpretability = field(default_factory=Interpretability)
    root: Path = field(default_factory=lambda: find_root(Path.cwd()))  # where relative paths begin
    by_hand: bool = field(default=False, compare=False)  # in a notebook that is not run by the pipeline

    def as_dict(self) -> dict[str, typing.Any]:
        """All parameters, flat, as the YAML file has them."""
        return {k: v for group in GROUPS for k, v in dataclasses.asdict(getattr(self, group)).items()}

    @property
    def run_dir(self) -> Path:
        """Everything this run writes and git does not keep."""
        return self.root / self.common.runs / self.common.name

    @property
    def results_dir(self) -> Path:
        """The result files."""
        return self.run_dir / "results"

    @property
    def logs_dir(self) -> Path:
        """One log file a notebook."""
        return self.run_dir / "logs"

    @property
    def figures_dir(self) -> Path:
        """The figures and the numbers behind them; those of a notebook run by hand stay in the run's folder, so that
        trying something never changes the figures of the paper."""
        return self.run_dir / "figures" if self.by_hand else self.root / self.common.figures / self.common.name

    @property
    def data_root(self) -> Path:
        """The dataset's folder, in the layout of Something-Something-V2."""
        stated = Path(self.data.data_root).expanduser()
        return self.root / stated if self.data.data_root else self.run_dir / "data"

    @property
    def material(self) -> str:
        """What the clips are: `tabletop`, `ssv2`, or `rehearsal`, an imitation of it that is never said to be real."""
        return "rehearsal" if (self.data_root / REHEARSAL).is_file() else self.data.dataset

    def checkpoint(self, stated: str) -> str:
        """A checkpoint as stated: a path from the project's folder where there is something, else a name on the Hub."""
        path = self.root / Path(stated).expanduser()
        return str(path) if path.exists() else stated

    @property
    def stream_checkpoints(self) -> dict[str, str | None]:
        """The checkpoints of the streams, for `TCA.create`; None is what the stream's name stands for."""
        stated = {f"{role}_checkpoint": getattr(self.streams, f"{role}_checkpoint") for role in ("semantic", "motion")}
        return {key: self.checkpoint(value) if value else None for key, value in stated.items()}

    def shown(self) -> dict[str, typing.Any]:
        """All parameters as any file may hold them: what is secret is left out."""
        return shown(self.as_dict())

    @property
    def device(self) -> str:
        """The device as stated."""
        return self.common.device

    @property
    def stated_workers(self) -> int:
        """Worker processes as stated; 0 = none were."""
        return self.common.workers

    @property
    def workers(self) -> int:
        """Worker processes: as stated, or the cores this process may use."""
        return self.common.workers or usable_cores()


def secrets(values: Mapping[str, typing.Any]) -> dict[str, str]:
    """The secrets among flat parameters, those that are stated themselves rather than as the $NAME of a variable."""
    return {key: values[key] for key in SECRETS if not str(values.get(key, "")).startswith("$") and values.get(key)}


def shown(values: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """Flat parameters as any file may hold them: what is secret is left out."""
    return {**values, **dict.fromkeys(secrets(values), HIDDEN)}
