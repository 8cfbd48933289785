"""Look-ups in the published checkpoints: which a stream loads, which one a file is, and the table for a notebook."""

import difflib
from pathlib import Path

from tcar.streams.catalogue import CHECKPOINTS, PACKAGED, TIMM, WEIGHTS, Checkpoint


def find(name: str) -> Checkpoint:
    """Return a checkpoint by its name; raises ValueError with the closest names otherwise."""
    if name not in CHECKPOINTS:
        close = difflib.get_close_matches(name, CHECKPOINTS, n=3, cutoff=0.4) or CHECKPOINTS
        raise ValueError(f"unknown checkpoint {name!r}; did you mean {', '.join(close)}?")
    return CHECKPOINTS[name]


def checkpoints_for(stream: str) -> list[Checkpoint]:
    """Return the checkpoints that a stream loads, its default first; none for a stream that comes with the package.

    `timm:<model>` gives the repository that timm itself names. Raises ValueError with the closest names for a stream
    that nothing is published for.
    """
    if stream in PACKAGED:
        return []
    listed = [checkpoint for checkpoint in CHECKPOINTS.values() if stream in checkpoint.streams]
    if not listed and stream.startswith(TIMM):
        listed = [_of_timm(stream)]
    if not listed:
        known = sorted({name for checkpoint in CHECKPOINTS.values() for name in checkpoint.streams})
        close = difflib.get_close_matches(stream, known, n=3, cutoff=0.4) or known
        raise ValueError(f"no checkpoint is published for {stream!r}; did you mean {', '.join(close)}?")
    # A file that a stream of its own serves comes after those whose layout is the stream's default.
    return sorted(listed, key=lambda checkpoint: checkpoint.streams[0] != stream)


def licence(stream: str) -> str:
    """Return the licence of the weights that a stream takes by default, "" where it is not known."""
    if stream in PACKAGED:
        return PACKAGED[stream]
    try:
        return checkpoints_for(stream)[0].licence
    except ValueError:  # a model of timm that nobody has published weights of
        return ""


def recognise(stream: str, checkpoint: str | Path) -> Checkpoint | None:
    """Return which published checkpoint of a stream was given, by name on the Hub, folder or file; None for another.

    A file counts by its own name or that of its folder, a folder by that of its repository: what a file holds says
    nothing of where it comes from.
    """
    given = Path(checkpoint)
    names = {given.name, given.parent.name} if given.is_file() else {given.name}
    try:
        listed = checkpoints_for(stream)
    except ValueError:
        return None
    for found in listed:
        own = {found.address.rpartition("/")[2], found.raw} - {""} if found.kind == "hub" else set(found.files)
        if str(checkpoint) == found.address or (given.exists() and names & own):
            return found
    return None


def _of_timm(stream: str) -> Checkpoint:
    import timm  # seconds to import, and only models outside the table need it

    model = stream.removeprefix(TIMM)
    about = timm.get_pretrained_cfg(model, allow_unregistered=False) if timm.is_model(model) else None
    if about is None or not about.hf_hub_id:
        close = ", ".join(difflib.get_close_matches(model, timm.list_pretrained(), n=3))
        raise ValueError(f"timm has no published weights of {model!r}" + (f"; did you mean {close}?" if close else ""))
    if about.hf_hub_id in CHECKPOINTS:
        return CHECKPOINTS[about.hf_hub_id]
    return Checkpoint(about.hf_hub_id, (stream,), "hub", about.hf_hub_id, WEIGHTS, about.license or "", "timm")


def table() -> list[dict[str, str | float | int]]:
    """Return a row for each checkpoint, for a notebook: megabytes are 10^6 bytes, what is not known is empty."""
    return [
        {
            "checkpoint": c.name,
            "serves": ", ".join(c.streams),
            "address": c.page,
            "megabytes": "" if c.size() is None else round(c.size(), 1),
            "licence": c.licence,
            "dataset": c.accuracy.dataset if c.accuracy else "",
            "top1": "" if c.accuracy is None or c.accuracy.top1 is None else c.accuracy.top1,
            "top5": "" if c.accuracy is None or c.accuracy.top5 is None else c.accuracy.top5,
            "protocol": c.accuracy.protocol if c.accuracy else "",
            "source": c.accuracy.source if c.accuracy else "",
            "note": c.note,
        }
        for c in CHECKPOINTS.values()
    ]
