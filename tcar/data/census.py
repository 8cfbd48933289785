"""What a dataset is made of: sizes and durations, words, groups, repetitions, and clips unlike the rest."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tcar.data.health import ClipHealth
from tcar.data.ssv2 import Clip

USUAL_SHARE = 0.9  # of the clips must agree on a height or rate before another one is called unusual
EXTREME_ASPECT = 3.0  # longer side over shorter side


def statistics(clips: Sequence[Clip], health: Sequence[ClipHealth]) -> dict:
    """Durations (s), frames, frames a second, bytes and frame sizes of the healthy clips, and how even the classes are.

    Classes are counted over the healthy clips whose label is known, under their template text without brackets.
    """
    measured = {"durations": "duration", "frames": "frames", "rates": "rate", "bytes": "bytes"}
    healthy = {found.id: found for found in health if found.ok}
    known = (clip for clip in clips if clip.id in healthy and clip.label is not None)
    # the answers of test come without the brackets that the other splits have
    counts = Counter(clip.template.replace("[", "").replace("]", "") for clip in known)
    sizes = Counter(f"{found.width}x{found.height}" for found in healthy.values())
    return {
        "clips": len(healthy),
        **{key: _summary([getattr(found, name) for found in healthy.values()]) for key, name in measured.items()},
        "sizes": dict(sorted(sizes.items())),
        "classes": dict(sorted(counts.items())),
        "imbalance": max(counts.values()) / min(counts.values()) if counts else None,
    }


def _summary(values: list[float] | list[int]) -> dict[str, float] | None:
    if not values:
        return None
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95))
    found = {
        "minimum": min(values), "percentile_5": low, "median": median, "mean": np.mean(values), "percentile_95": high,
        "maximum": max(values), "total": sum(values),
    }  # fmt: skip
    return {name: float(value) for name, value in found.items()}


def duplicates(health: Iterable[ClipHealth]) -> list[list[str]]:
    """Ids of healthy clips that show the same, frame by frame, whatever file and container they are in."""
    same: dict[tuple[str, int], list[str]] = defaultdict(list)
    for found in health:
        if found.content and found.ok:
            same[found.content, found.frames].append(found.id)
    return sorted(ids for ids in same.values() if len(ids) > 1)


def unusual(health: Iterable[ClipHealth]) -> dict[str, list[str]]:
    """Ids of healthy clips by what is unlike the rest about them: "height", "rate" or "aspect".

    A height or rate is unusual where at least `USUAL_SHARE` of the clips share another one; an aspect where one side is
    more than `EXTREME_ASPECT` times the other.
    """
    healthy, found = [clip for clip in health if clip.ok], {}
    for name in ("height", "rate"):
        values = Counter(round(getattr(clip, name), 3) for clip in healthy)
        common, count = values.most_common(1)[0] if values else (None, 0)
        if count >= USUAL_SHARE * len(healthy):
            found[name] = [clip.id for clip in healthy if round(getattr(clip, name), 3) != common]
    extreme = [max(clip.width, clip.height) > EXTREME_ASPECT * min(clip.width, clip.height) for clip in healthy]
    found["aspect"] = [clip.id for clip, is_extreme in zip(healthy, extreme, strict=True) if is_extreme]
    return {name: ids for name, ids in found.items() if ids}


def differences(health: Iterable[ClipHealth], groups: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """How much changes from one frame to the next, of 255, in each group: clips, and the quantiles 5, 50 and 95%.

    groups: id of a clip to its class, split or other group; healthy clips without one are left out.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for found in health:
        if found.ok and found.id in groups:
            values[groups[found.id]].append(found.difference)
    return {
        group: {
            "clips": len(numbers),
            **dict(zip(("low", "median", "high"), np.quantile(numbers, (0.05, 0.5, 0.95)).tolist(), strict=True)),
        }
        for group, numbers in sorted(values.items())
    }


def template_words(clips: Iterable[Clip]) -> dict[str, int]:
    """How many clips have each word in their template, the commonest first; what stands for an object is left out."""
    return _ranked(word for clip in clips for word in set(_words(clip.template)) - {"something"})


def object_words(clips: Iterable[Clip]) -> dict[str, int]:
    """How often annotators named each object, the commonest first."""
    return _ranked(name.strip().lower() for clip in clips for name in clip.placeholders)


def verb_groups(class_names: Sequence[str]) -> dict[str, list[str]]:
    """The classes by the first word of their template, "Pushing" or "Putting", the largest group first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        groups[next(iter(_words(name)), "").capitalize()].append(name)
    return dict(sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _ranked(items: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(items).items(), key=lambda item: (-item[1], item[0])))
