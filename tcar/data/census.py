"""What a dataset is made of, beyond the health of its files: words, groups, repetitions, and clips unlike the rest."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tcar.data.health import ClipHealth
from tcar.data.ssv2 import Clip

USUAL_SHARE = 0.9  # of the clips must agree on a height or rate before another one is called unusual
EXTREME_ASPECT = 3.0  # longer side over shorter side


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
    found["aspect"] = [
        clip.id
        for clip in healthy
        if max(clip.width, clip.height) > EXTREME_ASPECT * min(clip.width, clip.height)
    ]
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
