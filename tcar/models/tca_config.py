"""What a TCA is made of, as its config.json keeps it and the parameters of a run say it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from tcar.fusion.config import FusionConfig
from tcar.fusion.settings import FusionSettings
from tcar.ground.settings import check_whole
from tcar.streams.registry import stream_spec
from tcar.streams.settings import StreamSettings


@dataclass(frozen=True)
class TCAConfig:
    """What a TCA is made of; raises ValueError where the class names and the fusion disagree.

    `semantic_adapters` counts the last blocks of the semantic stream that have an adapter of `adapter_width` channels.
    """

    semantic: str
    motion: str
    semantic_frames: int
    motion_frames: int
    semantic_grid: tuple[int, int, int]
    motion_grid: tuple[int, int, int]
    class_names: tuple[str, ...]
    fusion: FusionConfig
    max_trained_parameters: int = 20_000_000
    semantic_adapters: int = 0
    adapter_width: int = 64

    def __post_init__(self):
        check_whole(self, semantic_adapters=0, adapter_width=1)
        if len(self.class_names) != self.fusion.num_classes:
            raise ValueError(
                f"TCAConfig.class_names holds {len(self.class_names)} names, "
                f"FusionConfig.num_classes is {self.fusion.num_classes}"
            )

    @classmethod
    def from_dict(cls, values: dict) -> "TCAConfig":
        """Build from plain values such as JSON's; raises ValueError naming unknown or missing keys."""
        if not isinstance(values, dict) or not isinstance(values.get("fusion"), dict):
            raise ValueError("TCAConfig: 'fusion' must hold the values of a FusionConfig")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return _from_dict(cls, values | {"fusion": _from_dict(FusionConfig, values["fusion"])})

    @classmethod
    def of(cls, streams: StreamSettings, fusion: FusionSettings, class_names: Sequence[str]) -> "TCAConfig":
        """Build what settings say, with the widths that the streams are registered with.

        Raises ValueError for a stream that is not registered.
        """
        return cls(
            streams.semantic,
            streams.motion,
            streams.semantic_frames,
            streams.motion_frames,
            tuple(streams.semantic_grid),
            tuple(streams.motion_grid),
            tuple(class_names),
            FusionConfig(
                semantic_width=stream_spec(streams.semantic).width,
                motion_width=stream_spec(streams.motion).width,
                num_classes=len(class_names),
                **fusion.settings,
            ),
            fusion.max_trained_parameters,
            streams.semantic_adapters,
            streams.adapter_width,
        )


def _from_dict(kind: type, values: dict):
    names = {field.name for field in fields(kind)}
    if values.keys() - names:
        raise ValueError(
            f"{kind.__name__} has no {', '.join(sorted(values.keys() - names))}; it has {', '.join(sorted(names))}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error
