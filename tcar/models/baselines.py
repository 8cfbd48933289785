"""Published models that read frames, as baselines of the fusion: how each is built, fed, loaded and trained.

A baseline takes uint8 frames `[b t s s 3]` to logits. `create_baseline` is all that a training needs to know of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import TimesformerConfig

from tcar.ground import records
from tcar.ground.errors import unknown
from tcar.models.cast import CAST, cast_parameter_groups
from tcar.models.cast_blocks import CASTConfig
from tcar.models.settings import PUBLISHED
from tcar.models.timesformer import TimeSformer
from tcar.streams.packaged import packaged
from tcar.streams.pretrained import locate
from tcar.streams.stream import Source
from tcar.streams.weights import CheckpointError, read_state

SSV2_CLASSES = 174
Checkpoints = Mapping[str, str]


@dataclass(frozen=True)
class Built:
    """A baseline ready to train or to score.

    `notes` are sentences that must stand beside its numbers. `labels` are the classes, by index, of a classifier that
    was loaded, None for a fresh one: a run has to check that its own classes are numbered alike.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()
    labels: Mapping[int, str] | None = None


@dataclass(frozen=True)
class Baseline:
    """What a registered baseline is.

    A clip is `frames` frames of `size` pixels a side: the middles of equal segments, squashed to a square, or with
    `crop` scaled by their shorter side and cut to the middle square. `build(classes, seed)` draws random weights,
    `load(model, checkpoints)` replaces them by published ones; `published` names the ones that it takes, by their key
    in the parameter `baseline_checkpoints`. `parts` are those that it takes from the package instead. `labelled` says
    that weights are of no use to it without the config.json beside them, which numbers their classes. `groups(model,
    learning_rate, weight_decay)` are those of the optimiser; None stands for those of all other trainings.
    """

    name: str
    frames: int
    size: int
    crop: bool
    build: Callable[[int, int], nn.Module]
    load: Callable[[nn.Module, Checkpoints], Built]
    published: dict[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    labelled: bool = False
    groups: Callable[[nn.Module, float, float], list[dict]] | None = None


def find_baseline(name: str) -> Baseline:
    """Return a registered baseline; raises ValueError with the closest name otherwise."""
    if name not in BASELINES:
        raise ValueError(f"baseline {name!r}: {unknown(name, BASELINES)}")
    return BASELINES[name]


def create_baseline(
    name: str, classes: int, checkpoints: Checkpoints | None = None, *, seed: int = 0, untrained: bool = False
) -> Built:
    """Build a baseline for so many classes, with the published weights that `checkpoints` names, or the package's.

    The keys of `checkpoints` are those of `Baseline.published`; the values folders, files, or names in the local
    cache of the Hub. With `untrained` it is to be scored as it is loaded, without any training. Raises ValueError for
    an unknown name, CheckpointError where weights are missing, do not match, or do not classify what is asked of
    them.
    """
    baseline, checkpoints = find_baseline(name), dict(checkpoints or {})
    if strange := checkpoints.keys() - baseline.published.keys():
        known = ", ".join(baseline.published) or "none"
        raise CheckpointError(f"{name} has no checkpoint {', '.join(sorted(strange))}; known are: {known}")
    if missing := baseline.published.keys() - checkpoints.keys():
        wanted = ", ".join(f"{key}: {baseline.published[key]}" for key in sorted(missing))
        raise CheckpointError(
            f"{name} would have random weights where it is published with trained ones; set baseline_checkpoints: "
            f"{{{wanted}}} (names in the local cache of the Hub, folders or files)"
        )
    given = checkpoints or {part: str(packaged(part)) for part in baseline.parts}
    built = baseline.load(baseline.build(classes, seed), given)
    if untrained and built.labels is None:
        raise CheckpointError(
            f"{name} has no trained classifier of {classes} classes, so there is nothing to score as loaded"
            f"{_found(checkpoints)}; give a checkpoint with these classes, or set baseline_epochs: {{{name}: …}} "
            "above 0 to train one"
        )
    return built


def _found(checkpoints: Checkpoints) -> str:
    counts = {given: len(labels) for given in checkpoints.values() if (labels := _labels(given))}
    return "".join(f" ({given} has {count})" for given, count in counts.items())


def baseline_cost(name: str, classes: int) -> dict[str, int | float]:
    """Count `parameters`, `trained_parameters` and the `gflops` of one clip (2 a multiply-add), without running it.

    The GFLOPs are of the whole model, from frames to logits.
    """
    baseline = find_baseline(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = baseline.build(classes, 0).eval()
        model(torch.empty(1, baseline.frames, baseline.size, baseline.size, 3, dtype=torch.uint8))
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "parameters": sum(size for size, _ in sizes),
        "trained_parameters": sum(size for size, trained in sizes if trained),
        "gflops": counter.get_total_flops() / 1e9,
    }


def _labels(checkpoint: str) -> dict[int, str] | None:
    """Return the classes by index as the config.json of a checkpoint has them, None where it has none."""
    given = Path(checkpoint)
    path = given.with_name("config.json") if given.is_file() else locate(Source(checkpoint, 0, True), "config.json")
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("id2label") or {}
        return {int(index): str(label) for index, label in found.items()} or None
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a model's configuration: {error}") from error


def _tuned_on_ssv2(checkpoint: str, labels: Mapping[int, str] | None) -> bool:
    """Whether a checkpoint was fine-tuned on Something-Something-V2: by its name, or by its 174 classes."""
    if "ssv2" in str(checkpoint).lower() or len(labels or ()) == SSV2_CLASSES:
        return True
    if labels is None and Path(checkpoint).is_file():
        classifier = read_state(checkpoint).get("classifier.weight")
        return classifier is not None and len(classifier) == SSV2_CLASSES
    return False


def _load_cast(model: CAST, checkpoints: Checkpoints) -> Built:
    parts = {key.partition(".")[2]: given for key, given in checkpoints.items()}
    labels, classes = _labels(parts["videomae"]), model.config.num_classes
    same = labels is not None and len(labels) == classes
    model.load_experts(parts["clip"], parts["videomae"], fill_head=same)
    tuned = _tuned_on_ssv2(parts["videomae"], labels)
    notes = ("its temporal expert was itself fine-tuned on Something-Something-V2",) if tuned else ()
    # What the classifier reads is new, so even one that is filled classifies nothing before it is trained.
    return Built(model, notes)


def _load_timesformer(model: TimeSformer, checkpoints: Checkpoints) -> Built:
    (given,) = checkpoints.values()
    labels = _labels(given)
    if labels is None:
        raise CheckpointError(
            f"{given}: no config.json with id2label, which says how its classes are numbered; give the folder or "
            "the name on the Hub that has one"
        )
    whole = model.load_published(given, len(labels))
    notes = ["its weights were fine-tuned on Something-Something-V2"] if _tuned_on_ssv2(given, labels) else []
    notes += [] if whole else [f"its classifier of {len(labels)} classes was replaced by a fresh one"]
    return Built(model, tuple(notes), labels if whole else None)


def _load_cast_tiny(model: CAST, checkpoints: Checkpoints) -> Built:
    model.load_experts(*checkpoints.values(), fill_head=False)
    return Built(model, _begins_with(checkpoints))


def _load_timesformer_tiny(model: TimeSformer, checkpoints: Checkpoints) -> Built:
    model.load_body(*checkpoints.values())
    return Built(model, _begins_with(checkpoints))


def _begins_with(checkpoints: Checkpoints) -> tuple[str, ...]:
    """What the package says of weights of its own: on how many scenes they were trained, for how long."""
    experts, notes = {"clip": "its spatial expert", "videomae": "its temporal expert"}, []
    for part, file in checkpoints.items():
        told = records.load(Path(file).with_suffix(".json"))
        who = experts.get(part.partition(".")[2], "it")
        notes.append(f"{who} was trained before on {told['trained_on']} ({told['epochs']} epochs)")
    return tuple(notes)


# Both in miniature: as wide, deep and many-headed as the small streams, on frames of as many pixels as the small I3D.
CAST_TINY = CASTConfig(
    frames=16, image_size=80, patch_size=16, width=128, depth=4, heads=4, adapter_width=32, cross_width=64,
    drop_path=0.1,
)  # fmt: skip
TIMESFORMER_TINY = TimesformerConfig(
    image_size=80, patch_size=16, num_frames=8, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
    intermediate_size=512,
)  # fmt: skip


def _cast(name: str, config: CASTConfig, **fields) -> Baseline:
    def build(classes: int, seed: int) -> CAST:
        return CAST(replace(config, num_classes=classes), seed=seed)

    sizes = {"frames": config.frames, "size": config.image_size}
    return Baseline(name, **sizes, build=build, groups=cast_parameter_groups, **{"load": _load_cast, **fields})


def _timesformer(name: str, config: TimesformerConfig, **fields) -> Baseline:
    def build(classes: int, seed: int) -> TimeSformer:
        return TimeSformer(TimesformerConfig.from_dict(config.to_dict() | {"num_labels": classes}), seed=seed)

    sizes = {"frames": config.num_frames, "size": config.image_size}
    return Baseline(name, **sizes, build=build, **{"load": _load_timesformer, "labelled": True, **fields})


_ALL = (
    _cast("cast_b16", CASTConfig(), crop=True, published=PUBLISHED["cast_b16"]),
    _timesformer("timesformer_vitb16", TimesformerConfig(), crop=True, published=PUBLISHED["timesformer_vitb16"]),
    _cast("cast_tiny", CAST_TINY, crop=False, parts=("cast_tiny.clip", "cast_tiny.videomae"), load=_load_cast_tiny),
    _timesformer(
        "timesformer_tiny", TIMESFORMER_TINY, crop=False, parts=("timesformer_tiny",), load=_load_timesformer_tiny,
        labelled=False,
    ),
)
BASELINES: dict[str, Baseline] = {baseline.name: baseline for baseline in _ALL}
