"""What Tabletop gives away: leak probes and ceilings, measured before any method is trained.

Each probe is a forest trained on the training clips of one twin family and asked a forced choice on the test clips: of
a clip's class and its twin's, which? Chance is 50% by construction. A leak probe reads what must not tell (file
size, bit rate, length, brightness, where the hand is); a ceiling probe reads the ground truth of one kind of evidence
and says what a perfect method could reach with that evidence alone. `Pair.blind` says where theory puts a probe at
chance, and `Pair.sufficient` where it puts it near certainty.
"""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from sklearn.ensemble import ExtraTreesClassifier

from tcar.data import video
from tcar.data.workers import worker_count
from tcar.evaluate import interval
from tcar.ground import log
from tcar.ground.processes import pool
from tcar.tabletop.dataset import load_flow, load_index, load_truth
from tcar.tabletop.family import Pair
from tcar.tabletop.templates import FAMILIES, LABELS

MOMENTS = 8  # frames a clip, the middles of equal segments
QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
ROLES = 7    # two hands, one prop (cloth, box or screen), four objects
MAP = (8, 6)  # columns and rows of the maps of coloured and of grey things
# "ordered frames" are all frames in their order, in which a thing is known by its looks alone; "additive" adds what a
# bag of frames says to what the flow says, "ordered additive" what ordered frames say.
CEILINGS = (
    "first frame", "single frame", "bag of frames", "ordered frames", "true flow", "additive", "ordered additive",
    "oracle",
)  # fmt: skip
SUMS = {"additive": ("bag of frames", "true flow"), "ordered additive": ("ordered frames", "true flow")}
LEAKS = ("file size", "bit rate", "length", "brightness", "hand position")


def _things(truth: dict) -> list[dict]:
    """The objects of a clip but its props and what has no part in the action."""
    return [i for i in truth["instances"] if i["category"] != "hand" and i["shape"] not in ("cloth", "box", "screen")
            and not i["name"].startswith("distractor")]


def _state(truth: dict, shape: tuple[int, int]) -> Float[np.ndarray, "t r 5"]:
    """Visible, x, y, area and nearness of each role in every frame, from boxes and depth order.

    Objects stand in the order of their textures' names, so that a place in the list tells nothing of the role that a
    template gave them. Those that look the same as another have no place: frames do not say which is which.
    """
    hands = [i["id"] for i in truth["instances"] if i["category"] == "hand"]
    props = [i["id"] for i in truth["instances"] if i["shape"] in ("cloth", "box", "screen")]
    rest = _things(truth)
    worn = [i["texture"] for i in rest]
    single = [i for i in rest if worn.count(i["texture"]) == 1]
    things = [i["id"] for i in sorted(single, key=lambda i: (i["texture"].startswith("plain"), i["texture"]))]
    slots = {identity: place for place, identity in (*enumerate(hands[:2]), *enumerate(props[:1], 2),
                                                     *enumerate(things[: ROLES - 3], 3))}
    state = np.zeros((len(truth["frames"]), ROLES, 5), np.float32)
    height, width = shape
    for t, frame in enumerate(truth["frames"]):
        order = frame["depth_order"]
        for label in frame["labels"]:
            if (slot := slots.get(label["instance"])) is None:
                continue
            b = label["box2d"]
            area = (b["x2"] - b["x1"]) * (b["y2"] - b["y1"]) / (height * width)
            state[t, slot] = [1, (b["x1"] + b["x2"]) / 2 / width, (b["y1"] + b["y2"]) / 2 / height, area,
                              order.index(label["instance"])]
    return state


def _by_looks(truth: dict) -> tuple[list[int], list[int]]:
    """The coloured and the grey things of a clip, by their ids."""
    grey = [i["texture"].startswith("plain") for i in _things(truth)]
    ids = [i["id"] for i in _things(truth)]
    return [i for i, g in zip(ids, grey, strict=True) if not g], [i for i, g in zip(ids, grey, strict=True) if g]


def _maps(truth: dict, instances: UInt8[np.ndarray, "t h w"]) -> Float[np.ndarray, "t f"]:
    """How much of each cell of a coarse grid coloured things cover, and grey ones."""
    masks = [np.isin(instances, ids).astype(np.float32) for ids in _by_looks(truth)]
    return np.stack([np.concatenate([cv2.resize(mask[t], MAP, interpolation=cv2.INTER_AREA).ravel() for mask in masks])
                     for t in range(len(instances))])


def _ways(truth: dict) -> Float[np.ndarray, " 4"]:
    """How far coloured things go from frame to frame, and grey ones, as (x, y) in pixels: what a tracker knows."""
    centres: dict[int, dict[int, np.ndarray]] = {}
    for t, frame in enumerate(truth["frames"]):
        for label in frame["labels"]:
            b = label["box2d"]
            centre = np.array([b["x1"] + b["x2"], b["y1"] + b["y2"]]) / 2
            centres.setdefault(label["instance"], {})[t] = centre
    ways = []
    for ids in _by_looks(truth):
        seen = [centres[i] for i in ids if i in centres]
        steps = [[c[t + 1] - c[t] for t in c if t + 1 in c] for c in seen]
        medians = [np.median(some, 0) for some in steps if some]
        ways.append(np.mean(medians, 0) if medians else np.zeros(2))
    return np.concatenate(ways)


def _with_relations(state: Float[np.ndarray, "t r 5"]) -> Float[np.ndarray, "t f"]:
    """The state and the differences between every two roles: a forest cannot subtract for itself."""
    pairs = [(a, b) for a in range(ROLES) for b in range(a)]
    both = np.stack([(state[:, a, 1:] - state[:, b, 1:]) * state[:, a, :1] * state[:, b, :1] for a, b in pairs], 1)
    return np.concatenate([state.reshape(len(state), -1), both.reshape(len(state), -1),
                           np.abs(both[..., 0])], 1)


def evidence(clip: str, root: Path) -> dict[str, np.ndarray]:
    """Every probe's features of one clip."""
    truth, instances = load_truth(root, clip)
    frames = len(instances)
    state = _state(truth, instances.shape[1:])
    every = np.concatenate([_with_relations(state), _maps(truth, instances)], 1)
    states = every[video.segment_indices(frames, MOMENTS)]
    flow = load_flow(root, clip)
    windows = [np.stack([cv2.resize(np.ascontiguousarray(w.mean(0)), (5, 4), interpolation=cv2.INTER_AREA)])
               for w in np.array_split(flow, 6)]
    path = Path(root) / "videos" / f"{clip}.webm"
    size, pictures = path.stat().st_size, video.read_frames(path, [0, frames // 2, frames - 1])
    # any moment, drawn anew for every clip: at a fixed one a reversal would show its original's neighbour
    moment = np.random.default_rng(int.from_bytes(hashlib.sha256(clip.encode()).digest()[:8])).integers(frames)
    ordered = np.concatenate([states.ravel(), (states[-1] - states[0]).ravel(),
                              (states[MOMENTS // 2:].mean(0) - states[: MOMENTS // 2].mean(0)).ravel()])
    return {
        "first frame": every[0],
        "single frame": every[moment],
        # sorted, so that not even a rounding error tells the order
        "bag of frames": np.concatenate([np.sort(every, 0).mean(0), np.quantile(every, QUANTILES, axis=0).ravel()]),
        "true flow": np.concatenate(windows).ravel(),
        "ordered frames": ordered,
        "oracle": np.concatenate([ordered, _ways(truth)]),
        "file size": np.array([size]),
        "bit rate": np.array([size / frames]),
        "length": np.array([frames]),
        "brightness": np.array([pictures.mean(), pictures.std(), *pictures.mean((0, 1, 2))]),
        "hand position": state[0, :2, :3].ravel(),
    }


def _gather(root: Path, clips: list[str], pool: ProcessPoolExecutor) -> dict[str, np.ndarray]:
    rows = list(log.progress(pool.map(partial(evidence, root=root), clips, chunksize=16), total=len(clips),
                             description="reading evidence"))
    return {key: np.stack([row[key] for row in rows]).astype(np.float32) for key in rows[0]}


def _forced_choice(log_probability: np.ndarray, classes: list[str], own: list[str], twin: list[str]) -> np.ndarray:
    """1 where a clip's class beats its twin's, one half at a tie."""
    place = {c: i for i, c in enumerate(classes)}
    rows = np.arange(len(own))
    difference = (log_probability[rows, [place[c] for c in own]] - log_probability[rows, [place[c] for c in twin]])
    return np.where(np.abs(difference) < 1e-9, 0.5, difference > 0).astype(float)


def _interval(
    correct: np.ndarray, sets: list[str], seed: int, confidence: float, resamples: int = 2000
) -> dict[str, float | None]:
    """Mean with its interval, by resampling whole sets: the clips of one set share a seed, and have no interval."""
    names, which = np.unique(sets, return_inverse=True)
    total, count = np.bincount(which, correct), np.bincount(which)
    drawn = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)))
    return interval(correct.mean(), total[drawn].sum(1) / count[drawn].sum(1), confidence, len(names))


def measure(root: Path | str, *, seed: int = 0, trees: int = 200, workers: int = 0, skip: tuple[str, ...] = (),
            confidence: float = 0.95) -> dict[str, dict | list]:
    """Ceilings and leaks of a rendered Tabletop: {"ceilings" | "leaks": {group: {probe: value, low, high}}}, and
    "twins", a row for each pair of twins and probe, with what theory says of it: `blind`, that it is at chance, and
    `sufficient`, that it decides.

    Values are forced-choice accuracies within twins on test, with intervals over sets of this `confidence`. `skip`
    names clips to leave out (quarantined ones).
    """
    with pool(worker_count(workers)) as processes:
        return _measure(Path(root), processes, seed, trees, skip, confidence)


def _measure(root: Path, pool: ProcessPoolExecutor, seed: int, trees: int, skip: tuple[str, ...],
             confidence: float) -> dict:
    index = load_index(root)
    clips = [c for c, row in index.items() if row["split"] != "validation" and c not in skip]
    features = _gather(root, clips, pool)
    train = np.array([index[c]["split"] == "train" for c in clips])
    family_of = np.array([index[c]["set"].split("-")[1] for c in clips])
    jobs = []
    for name in sorted(set(family_of)):
        fit, ask = np.flatnonzero(train & (family_of == name)), np.flatnonzero(~train & (family_of == name))
        chosen = {probe: values[[*fit, *ask]] for probe, values in features.items()}
        rows = [index[clips[i]] | {"twin class": index[index[clips[i]]["twin"]]["class"]} for i in (*fit, *ask)]
        jobs.append(pool.submit(_ask, name, chosen, rows, len(fit), trees, seed))
    pairs = [part for job in log.progress(jobs, description="fitting forests") for part in _by_pair(job.result())]
    out: dict = {"ceilings": {}, "leaks": {}, "twins": []}
    for group in sorted({pair.group for pair, _ in pairs}):
        here = [asked for pair, asked in pairs if pair.group == group]
        result = {
            probe: _interval(np.concatenate([a.correct[probe] for a in here]), [s for a in here for s in a.sets], seed,
                             confidence)
            for probe in (*CEILINGS, *LEAKS)
        }
        out["ceilings"][group] = {p: result[p] for p in CEILINGS}
        out["leaks"][group] = {p: result[p] for p in LEAKS}
    for pair, asked in sorted(pairs, key=lambda one: one[0].group):
        out["twins"] += _rows(pair, asked, seed, confidence)
    return out


@dataclass(frozen=True)
class Asked:
    """Test clips of a family or of a pair: their classes and sets, and for each probe how often it was right."""

    family: str
    classes: list[str]
    sets: list[str]
    correct: dict[str, np.ndarray]


def _ask(
    family: str, features: dict[str, np.ndarray], rows: list[dict], fitted: int, trees: int, seed: int
) -> Asked:
    """Fit the forests of a family on the first `fitted` rows and ask them about the others."""
    known, asked, scores = [row["class"] for row in rows[:fitted]], rows[fitted:], {}
    for probe, values in features.items():
        forest = ExtraTreesClassifier(trees, min_samples_leaf=2, max_features=0.3, random_state=seed)
        forest.fit(values[:fitted], known)
        scores[probe] = np.log(forest.predict_proba(values[fitted:]) + 1e-3)
    classes = list(forest.classes_)
    scores |= {name: scores[one] + scores[other] for name, (one, other) in SUMS.items()}
    own, twin = [row["class"] for row in asked], [row["twin class"] for row in asked]
    correct = {probe: _forced_choice(score, classes, own, twin) for probe, score in scores.items()}
    return Asked(family, own, [row["set"] for row in asked], correct)


def _by_pair(asked: Asked) -> list[tuple[Pair, Asked]]:
    """A family's clips, pair by pair; a pair that no clip was asked of is left out."""
    parts = []
    for pair in FAMILIES[asked.family].pairs:
        names = [LABELS[index] for index in pair.twins]
        if here := [i for i, name in enumerate(asked.classes) if name in names]:
            correct = {probe: values[here] for probe, values in asked.correct.items()}
            chosen = [[column[i] for i in here] for column in (asked.classes, asked.sets)]
            parts.append((pair, Asked(asked.family, *chosen, correct)))
    return parts


def _rows(pair: Pair, asked: Asked, seed: int, confidence: float) -> list[dict]:
    """What every probe says of a pair, beside what theory says."""
    about = {"twins": [LABELS[index] for index in pair.twins], "group": pair.group}
    return [
        about | {"probe": probe, "blind": probe in pair.blind, "sufficient": probe in pair.sufficient}
        | _interval(asked.correct[probe], asked.sets, seed, confidence)
        for probe in (*CEILINGS, *LEAKS)
    ]
