"""What must hold between parameters, so that a file that cannot work is refused when it is loaded, not hours later.

Nothing heavy is imported: what streams and fusions are stands in the settings of their rooms.
"""

from __future__ import annotations

from collections.abc import Iterator

from tcar.fusion.settings import AVERAGED, EXCHANGING, WITHOUT_ATTENTION
from tcar.ground.errors import unknown
from tcar.lab.params.run import Params
from tcar.lab.params.settings import FIELDS, HEADLINE
from tcar.streams.catalogue import STREAMS, TIMM, StreamFacts
from tcar.streams.settings import known_streams
from tcar.tabletop.settings import FAMILIES

# The parameters that a mistake is about, and what to say of it.
Mistake = tuple[set[str], str]


def mistakes(run: Params) -> Iterator[Mistake]:
    """Each way in which parameters, right one by one, do not fit together."""
    for rule in (_data, _streams, _fusion, _epochs, _methods, _trainer, _evaluation, _ablations, _loss_terms):
        yield from rule(run)


def _data(run: Params) -> Iterator[Mistake]:
    tabletop = run.tabletop
    if run.data.dataset != "tabletop":
        if tabletop.classes:
            text = f"classes is {tabletop.classes}, but only Tabletop can be rendered in part: leave it []"
            yield {"classes", "dataset"}, text
        if tabletop.control:
            text = f"control is {tabletop.control!r}, but only Tabletop is rendered with one: leave it empty"
            yield {"control", "dataset"}, text
        return
    rendered = sorted(index for family in FAMILIES.values() for index in family)
    if foreign := sorted(set(tabletop.classes) - set(rendered)):
        yield {"classes"}, f"classes names {foreign}, which Tabletop does not render; it has {rendered}"
    for name, family in FAMILIES.items():
        missing = sorted(set(family) - set(tabletop.classes))
        if 0 < len(missing) < len(family):
            text = f"classes lacks {missing}: family {name} shares a seed over {sorted(family)}, so take all or none"
            yield {"classes"}, text
    if 3 * tabletop.width != 4 * tabletop.height:
        sides = f"{tabletop.width} and {tabletop.height}"
        text = f"width and height are {sides}, but Tabletop is drawn at 4:3: try 160 and 120"
        yield {"width", "height"}, text
    if odd := [length for length in tabletop.lengths if length % 2]:
        yield {"lengths"}, f"lengths has {odd}, but Tabletop needs even numbers of frames"


def _streams(run: Params) -> Iterator[Mistake]:
    streams = run.streams
    for role in ("semantic", "motion"):
        name, key = getattr(streams, role), f"{role}_frames"
        if name.startswith(TIMM) and role == "semantic":  # only timm knows its sizes
            yield from _grid(run, role, None)
        elif name not in known_streams(role):
            yield {role}, f"{role} is {name!r}, {unknown(name, known_streams(role))}"
        elif name in STREAMS:
            facts, frames = STREAMS[name], getattr(streams, key)
            if facts.length and frames > facts.length and frames % facts.length:
                yield {role, key}, f"{key} is {frames}, but {name} reads {facts.length} at a time: give a multiple"
            yield from _grid(run, role, facts)
    if streams.view_flip and streams.views == 1:
        yield {"view_flip", "views"}, (
            f"view_flip is {streams.view_flip}, but views is 1, and the first view of a clip is never mirrored: set "
            "views to 2 or more, or view_flip to 0"
        )
    adapters, blocks = streams.semantic_adapters, getattr(STREAMS.get(streams.semantic), "blocks", 0)
    if adapters and run.trainer.task != "clips":
        yield {"semantic_adapters", "task"}, (
            f"semantic_adapters is {adapters}, but tokens that are kept do not change with adapters in training: set "
            "it to 0, or train end to end (task: clips)"
        )
    if blocks and adapters > blocks:
        text = f"semantic_adapters is {adapters}, but {streams.semantic} has {blocks} blocks"
        yield {"semantic_adapters", "semantic"}, text
    for name in run.full_size.full_size_streams:
        if not name.startswith(TIMM) and name not in known_streams():
            yield {"full_size_streams"}, f"full_size_streams names {name!r}, {unknown(name, known_streams())}"


def _grid(run: Params, role: str, facts: StreamFacts | None) -> Iterator[Mistake]:
    """Tokens are pooled to the grid of the parameters, which can have no more cells than there are tokens."""
    grid, frames = getattr(run.streams, f"{role}_grid"), getattr(run.streams, f"{role}_frames")
    own = facts.grid(frames) if facts else (frames, *grid[1:])
    if any(wanted > there for wanted, there in zip(grid, own, strict=True)):
        yield {role, f"{role}_grid", f"{role}_frames"}, (
            f"{role}_grid is {grid}, but {getattr(run.streams, role)} gives {' x '.join(map(str, own))} tokens (time, "
            f"rows, columns) of {frames} frames, and no axis can have more"
        )


def _fusion(run: Params) -> Iterator[Mistake]:
    fusion = run.fusion
    asked = {"heads": [fusion.heads], "ablation_heads": run.ablations.ablation_heads}
    for key, counts in asked.items():
        for name in ("fusion_width", "cross_width"):
            if wrong := [heads for heads in counts if getattr(fusion, name) % (2 * heads)]:
                yield {key, name}, (
                    f"{key} has {wrong} where {name} is {getattr(fusion, name)}: each head needs an even, whole number "
                    "of channels"
                )
    if fusion.fusion in WITHOUT_ATTENTION:
        text = f"fusion is {fusion.fusion}, which has no attention for notebook 06 to look at: take another kind"
        yield {"fusion"}, text
    named = {
        "methods": run.training.methods, "ablation_fusions": run.ablations.ablation_fusions,
        "replicate_methods": run.ablations.replicate_methods,
    }  # fmt: skip
    for key, methods in named.items():
        twice = [method for method in methods if method.endswith(AVERAGED)]
        if twice and fusion.appearance == "averaged":
            yield {key, "appearance"}, (
                f"appearance is averaged, which every method then is, and {key} has {twice}: set appearance to ordered"
            )
    losses = {key: getattr(run.trainer, key) for key in ("contrastive_weight", "order_weight")}
    exchanging = run.trainer.task != "baseline" and fusion.fusion in EXCHANGING
    for key, weight in losses.items():
        if weight and not exchanging:
            yield {"fusion", "task", key}, (
                f"{key} is {weight}, but only a fusion of {', '.join(EXCHANGING)} has what it compares: leave it out"
            )
    if run.trainer.order_weight and run.trainer.task == "tokens":
        yield {"order_weight", "task"}, (
            f"order_weight is {run.trainer.order_weight}, but it needs clips that are played backwards, which kept "
            "tokens cannot be: set it to 0, or task to clips"
        )


def _epochs(run: Params) -> Iterator[Mistake]:
    warmup, training = run.training.warmup_epochs, run.training
    stated = {"epochs": training.epochs}
    stated |= {f"epochs_by_method: {method}": epochs for method, epochs in training.epochs_by_method.items()}
    stated |= {f"baseline_epochs: {name}": epochs for name, epochs in run.baselines.baseline_epochs.items() if epochs}
    for key, epochs in stated.items():
        if epochs <= warmup:
            text = f"{key} is {epochs}, but must be above warmup_epochs, which is {warmup}"
            yield {key.partition(":")[0], "warmup_epochs"}, text


def _methods(run: Params) -> Iterator[Mistake]:
    methods, headline = run.training.methods, run.fusion.fusion
    if headline not in methods:
        yield {"methods", "fusion"}, f"methods is {methods}, without {headline}, the headline by fusion: add it"
    elif HEADLINE not in methods:
        yield {"methods"}, f"methods is {methods}, without {HEADLINE}, which the paper compares all others with: add it"


def _trainer(run: Params) -> Iterator[Mistake]:
    trainer, named = run.trainer, run.baselines.baselines
    if trainer.task == "baseline" and len(named) != 1:
        yield {"task", "baselines"}, f"task is baseline and baselines is {named}: name the one to train"
    if trainer.precision == "fp16" and run.common.device == "cpu":
        yield {"precision", "device"}, "precision is fp16, which a CPU does not train in: set it to bf16 or fp32"
    if trainer.crop_scale[0] > trainer.crop_scale[1]:
        yield {"crop_scale"}, f"crop_scale is {trainer.crop_scale}: its first share must not be above its second"
    if trainer.colour_jitter[3] > 0.5:
        yield {"colour_jitter"}, f"colour_jitter is {trainer.colour_jitter}: the hue, its last, is at most 0.5"


def _evaluation(run: Params) -> Iterator[Mistake]:
    if run.evaluation.emap_clips == 1:
        yield {"emap_clips"}, "emap_clips is 1, but twins are two clips: take 2 or more, or 0 for no projection"


def _ablations(run: Params) -> Iterator[Mistake]:
    for role in ("semantic", "motion"):
        key, grid = f"ablation_{role}_grids", getattr(run.streams, f"{role}_grid")
        for level in getattr(run.ablations, key):
            if any(wanted > there for wanted, there in zip(map(int, level.split("x")), grid, strict=True)):
                yield {key, f"{role}_grid"}, (
                    f"{key} has {level} where {role}_grid is {grid}: stored tokens are averaged, so no axis can have "
                    "more; give coarser grids, or []"
                )


def _loss_terms(run: Params) -> Iterator[Mistake]:
    values = run.as_dict()
    for term, added in run.ablations.loss_terms.items():
        if not values[term] and not added:
            text = f"loss_terms: {term} is 0 in the recipe and here; give it a value to be added with"
            yield {"loss_terms", term}, text
        if added > (most := FIELDS[term].metadata.get("maximum", added)):
            yield {"loss_terms"}, f"loss_terms: {term} is {added}, expected at most {most}"
