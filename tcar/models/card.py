"""The model card that is kept beside a model: what it is made of, what it costs, and what is known of its training."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData
from torch import nn

from tcar.models.training_data import TrainingData
from tcar.streams.registry import weights_digest
from tcar.streams.stream import Stream

SYNTHETIC = (
    "**The clips are synthetic.** The numbers below say how well the model names actions in them; they are no result "
    "on Something-Something-V2 or any real video, and stand beside none that were published for it."
)
RANDOM = "Random weights: without training streams, the classes that this model gives mean nothing."


def model_card(model: nn.Module, facts: Mapping[str, Any] | None = None) -> str:
    """Return the text of a TCA's card in the format of the Hub; of the training it tells only the facts that are given.

    facts: `dataset` (text), `synthetic` (whether its clips are), `ranges` (of its training clips, as `TrainingData` has
    them), `protocol` (text), `metrics` (name -> value), `licence` (of the trained weights), and any others by name,
    told in their order.
    """
    facts = dict(facts or {})
    licence = facts.pop("licence", None)
    front = ModelCardData(
        library_name="tcar",
        license=licence.lower() if licence else None,
        pipeline_tag="video-classification",
        tags=["video", "action-recognition"],
    )
    sections = [f"---\n{front.to_yaml()}\n---", _summary(model), _streams(model), _costs(model), _training(facts)]
    return "\n\n".join(section for section in [*sections, _use(), _licences(model, licence)] if section) + "\n"


def _summary(model: nn.Module) -> str:
    config, adapters = model.config, ""
    if config.semantic_adapters:
        adapters = (
            f"Adapters of {config.adapter_width} channels in the last {config.semantic_adapters} blocks of the "
            "semantic stream were trained with it. "
        )
    return (
        f"# {config.semantic} and {config.motion}, fused by {config.fusion.method}\n\n"
        f"Names the action in a video, one of {len(config.class_names)} classes. Two frozen streams turn frames into "
        f"tokens with places in space and time; the fusion, which was trained, reads both. {adapters}This folder holds "
        f"what was trained; the frozen weights of the streams are named by their digests."
    )


def _streams(model: nn.Module) -> str:
    rows = []
    for role in ("semantic", "motion"):
        stream, grid = getattr(model, role), getattr(model.config, f"{role}_grid")
        rows.append(
            {
                "stream": f"{role}: {stream.name}",
                "frames": getattr(model.config, f"{role}_frames"),
                "pixels": stream.input_size,
                "tokens": " x ".join(map(str, grid)) + f" of width {stream.width}",
                "weights": stream.info["source"] if stream.pretrained else "random",
                "licence": _licence(stream),
                "SHA-256 of the weights": f"`{weights_digest(stream)}`",
            }
        )
    random = not (model.semantic.pretrained and model.motion.pretrained)
    return f"## Streams\n\n{_table(rows)}" + (f"\n\n{RANDOM}" if random else "")


def _costs(model: nn.Module) -> str:
    rows = [
        {
            "part": row["part"],
            "parameters": f"{row['total']:,}",
            "trained": f"{row['trained']:,}",
            "megabytes": f"{row['megabytes']:.1f}",
            "GFLOPs a clip": "" if row["gflops"] is None else f"{row['gflops']:.2f}",
        }
        for row in model.parameter_table()
    ]
    share = model.parameter_table()[-1]["share_frozen"]
    return f"## Parameters and cost\n\n{_table(rows)}\n\nFrozen: {share:.1%} of all parameters. A multiply-add is two."


def _training(facts: dict[str, Any]) -> str:
    if not facts:
        return ""
    lines, known = [], TrainingData.of(facts)
    ranges = facts.pop("ranges", {})
    if known:
        lines.append(f"Trained on {facts.pop('dataset')}.")
        lines += [f"Its training clips have {known.described()}."] if ranges else []
    if facts.pop("synthetic", False):
        lines.append(SYNTHETIC)
    protocol, metrics = facts.pop("protocol", ""), facts.pop("metrics", {})
    lines += [f"{name}: {_value(value)}" for name, value in facts.items()]
    if metrics:
        lines.append(_table([{"metric": name, "value": _value(value)} for name, value in metrics.items()]))
    if protocol:
        lines.append(f"Measured so: {protocol}.")
    return "## Training and evaluation\n\n" + "\n\n".join(lines)


def _use() -> str:
    return (
        "## Use\n\n```python\nimport tcar\n\n"
        'print(tcar.predict("clip.mp4", model="path/to/this/folder"))\n```\n\n'
        "Streams that do not come with the package need their published weights: give `semantic_checkpoint=` and "
        "`motion_checkpoint=`. Weights of another digest are refused."
    )


def _licences(model: nn.Module, licence: str | None) -> str:
    own = f"The fusion: {licence}. " if licence else ""
    rest = "; ".join(f"{stream.name}: {_licence(stream)}" for stream in (model.semantic, model.motion))
    return f"## Licences\n\n{own}The weights of the streams are their publishers': {rest}."


def _licence(stream: Stream) -> str:
    """Return what stands for the licence of a stream's weights; `info` tells it of published ones, loaded or not."""
    return (stream.info["licence"] or "not known") if stream.pretrained else "none (random weights)"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
