"""Notebook 04: where a method is wrong, joined with what the ground truth of Tabletop knows of every clip.

The class that was answered says what was lost: it is that of the clip's own twin, which differs in one factor, another
one of the same group, or one of another group. Of a dataset without twins it is told which errors are confident, and no
more. Intervals are of the bootstrap over twin sets; the trainings are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from tcar.data.video import read_segments
from tcar.evaluate import Bootstrap, annotations, class_twins, probabilities, ratio_interval
from tcar.lab.steps.clips import class_groups, class_names, ground_truth, healthy_clips
from tcar.lab.steps.conditions import amounts, contrast, thirds
from tcar.lab.steps.methods import bootstrap
from tcar.tabletop.family import BOUND, MOTION, ONE_FRAME, ORDER, WHAT_AND_WHERE

if TYPE_CHECKING:
    from tcar.lab.params import Params

CONFIDENT = 0.9  # an answer with more confidence than this is one that its reader would believe
LISTED, SHOWN, MOMENTS = 10, 5, 6  # clips in the list and, where no kinds are known, in the gallery; frames of each
# What is lost where a clip of this group is taken for its twin: in two of them that is the same clip backwards.
LOST = {
    ORDER: "order lost", MOTION: "order lost", BOUND: "binding lost", ONE_FRAME: "appearance lost",
    WHAT_AND_WHERE: "appearance lost",
}  # fmt: skip
TWIN_KINDS = tuple(dict.fromkeys(LOST.values()))
WITHIN, BEYOND = "within the group", "another group"
KINDS = (*TWIN_KINDS, WITHIN, BEYOND)  # each error is of one


@dataclass(frozen=True, eq=False)
class Answers:
    """What each seed of a method says of clips: the class that it names, and the probability that it gives it."""

    labels: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, "s n"]
    confidence: Float[np.ndarray, "s n"]
    sets: Sequence[str]

    @classmethod
    def of(
        cls, logits: Sequence[Float[np.ndarray, "n c"]], labels: Int[np.ndarray, " n"], sets: Sequence[str]
    ) -> Answers:
        """Read them from logits, one array a seed."""
        predicted = np.stack([one.argmax(axis=1) for one in logits])
        return cls(labels, predicted, np.stack([probabilities(one).max(axis=1) for one in logits]), sets)

    @property
    def wrong(self) -> Bool[np.ndarray, "s n"]:
        """Which answers are errors."""
        return self.predicted != self.labels

    def share(self, some: Bool[np.ndarray, "s n"], among: Bool[np.ndarray, "s n"], how: Bootstrap) -> dict:
        """Count answers, and give their share among others, which are more, with its interval over sets."""
        hits, counts = (one.sum(axis=0).astype(float) for one in (some, among))
        return {"count": int(some.sum()), "share": ratio_interval(hits, counts, self.sets, how)}

    def surest(self, some: Bool[np.ndarray, "s n"]) -> list[tuple[int, int]]:
        """List the seed and the clip of answers, those of most confidence first, and of each clip the first alone."""
        order, first = np.argsort(-self.confidence[some], kind="stable"), {}
        for seed, clip in np.argwhere(some)[order].tolist():
            first.setdefault(clip, (seed, clip))
        return list(first.values())


def kinds_of(
    predicted: Int[np.ndarray, "s n"],
    labels: Int[np.ndarray, " n"],
    groups: Sequence[str],
    twins: Int[np.ndarray, " c"],
) -> Int[np.ndarray, "s n"]:
    """Return the kind of each error, its place in `KINDS`, and -1 for what is right.

    `groups` and `twins` are those of the classes, as `tcar.evaluate.class_twins` gives the latter.
    """
    names, lost = np.array(groups), np.array([KINDS.index(LOST[group]) for group in groups])
    within = names[predicted] == names[labels]
    kinds = np.where(within, KINDS.index(WITHIN), KINDS.index(BEYOND))
    kinds = np.where(predicted == twins[labels], lost[labels], kinds)
    return np.where(predicted == labels, -1, kinds)


def error_analysis(
    run: Params,
    logits: Sequence[Float[np.ndarray, "n c"]],
    labels: Int[np.ndarray, " n"],
    ids: Sequence[str],
    seeds: Sequence[int],
) -> dict:
    """Tell where a method is wrong on the scored clips, from its logits, one array a seed.

    Gives the numbers of `clips`, `answers` (one a clip and seed) and `errors`; of all errors those that take a clip for
    its twin (`twins`) and those of each of `KINDS` (`kinds`), which add up to all, as {count, share}; of answers above
    `CONFIDENT` (`confident`) their number, the wrong ones as {count, share} and the `clips` of the surest of these;
    `conditions`, as `tcar.lab.steps.conditions.contrast` compares them; and `examples`, the surest error of each kind.
    Shares are {"value", "low", "high"}. A dataset without ground truth has no twins (None), kinds and conditions, and
    its examples are the surest errors. Confidence is that of the logits as they are.
    """
    known, how = annotations(list(ids), ground_truth(run)), bootstrap(run)
    said = Answers.of(logits, labels, known.get("sets", list(ids)))
    sure, wrong = said.confidence > CONFIDENT, said.wrong
    believed, kinds, compared, most = said.surest(wrong & sure), None, [], {}
    examples = said.surest(wrong)[:SHOWN]
    if known:
        twins = class_twins(labels, known["twins"], logits[0].shape[1])
        kinds = kinds_of(said.predicted, labels, class_groups(run), twins)
        examples = [first for number in range(len(KINDS)) for first in said.surest(kinds == number)[:1]]
        found, right = amounts(run, ids), 1 - wrong.mean(axis=0)
        most = {name: thirds(amount, labels)[0] for name, amount in found.items()}
        compared = [
            {"condition": name, **contrast(right, labels, said.sets, amount, how)} for name, amount in found.items()
        ]
    names = class_names(run)

    def row(seed: int, clip: int) -> dict:
        return {
            "id": ids[clip],
            "kind": None if kinds is None else KINDS[kinds[seed, clip]],
            "true": names[labels[clip]],
            "predicted": names[said.predicted[seed, clip]],
            "confidence": float(said.confidence[seed, clip]),
            "seed": seeds[seed],
            "wrong_seeds": int(wrong[:, clip].sum()),
            "conditions": [name for name, inside in most.items() if inside[clip]],
        }

    return {
        "clips": len(labels),
        "answers": wrong.size,
        "errors": int(wrong.sum()),
        "twins": None if kinds is None else said.share((kinds >= 0) & (kinds < len(TWIN_KINDS)), wrong, how),
        "kinds": [
            {"kind": kind, **said.share(kinds == number, wrong, how)}
            for number, kind in enumerate(KINDS if known else ())
        ],
        "confident": {"above": CONFIDENT, "answers": int(sure.sum()), **said.share(wrong & sure, sure, how)}
        | {"clips": [row(*place) for place in believed[:LISTED]]},
        "conditions": compared,
        "examples": [row(*place) for place in examples],
    }


def pictures(run: Params, rows: Sequence[Mapping]) -> list[UInt8[np.ndarray, "t _ _ 3"]]:
    """Read moments of the scored clips that rows name, at the middles of equal segments."""
    split = run.evaluation.evaluation_split
    paths = {clip.id: clip.path for clip in healthy_clips(run, split)[split]}
    return [read_segments(paths[row["id"]], MOMENTS, upright=run.data.upright) for row in rows]
