"""What Tabletop gives away: leak probes and ceilings, measured before any method is trained.

Each probe is a forest trained on the training clips of one group and asked a forced choice on the test clips: of a
clip's class and its twin's, which? Chance is 50% by construction. A leak probe reads what must not tell (file size,
length, brightness, where the hand is); a ceiling probe reads the ground truth of one kind of evidence and says what a
perfect method could reach with that evidence alone.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float
from sklearn.ensemble import ExtraTreesClassifier

from ... import log
from .. import video
from ..workers import worker_count
from .dataset import load_flow, load_index, load_truth

MOMENTS = 8  # frames a clip, the middles of equal segments
ROLES = 7    # two hands, one prop (cloth, box or screen), four objects
CEILINGS = ("first frame", "single frame", "bag of frames", "true flow", "additive", "oracle")
LEAKS = ("file size", "length", "brightness", "hand position")


def _state(truth: dict, shape: tuple[int, int]) -> Float[np.ndarray, "t r 5"]:
    """Visible, x, y, area and nearness of each role in every frame, from boxes and depth order.

    Objects stand in the order of their textures' names, grey ones last, so that a place in the list tells nothing of
    the role that a template gave them.
    """
    hands = [i["id"] for i in truth["instances"] if i["category"] == "hand"]
    props = [i["id"] for i in truth["instances"] if i["shape"] in ("cloth", "box", "screen")]
    rest = [i for i in truth["instances"] if i["id"] not in hands + props]
    things = [i["id"] for i in sorted(rest, key=lambda i: (i["texture"].startswith("plain"), i["texture"], i["id"]))]
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


def _with_relations(state: Float[np.ndarray, "t r 5"]) -> Float[np.ndarray, "t f"]:
    """The state and the differences between every two roles: a forest cannot subtract for itself."""
    pairs = [(a, b) for a in range(ROLES) for b in range(a)]
    both = np.stack([(state[:, a, 1:] - state[:, b, 1:]) * state[:, a, :1] * state[:, b, :1] for a, b in pairs], 1)
    return np.concatenate([state.reshape(len(state), -1), both.reshape(len(state), -1),
                           np.abs(both[..., 0])], 1)


def evidence(clip: str, root: Path) -> dict[str, np.ndarray]:
    """Every probe's features of one clip."""
    truth, instances = load_truth(root, clip)
    moments = video.segment_indices(len(instances), MOMENTS)
    every = _with_relations(_state(truth, instances.shape[1:]))
    states = every[moments]
    flow = load_flow(root, clip)
    windows = [np.stack([cv2.resize(np.ascontiguousarray(w.mean(0)), (5, 4), interpolation=cv2.INTER_AREA)])
               for w in np.array_split(flow, 6)]
    flow = np.concatenate(windows).ravel()
    path = Path(root) / "videos" / f"{clip}.webm"
    frames = video.read_frames(path, [0, len(instances) // 2])
    bag = np.concatenate([states.mean(0), states.min(0), states.max(0), np.median(states, 0)])
    return {
        "first frame": every[0],
        "single frame": every[len(every) // 2],
        "bag of frames": bag,
        "true flow": flow,
        "oracle": np.concatenate([states.ravel(), (states[-1] - states[0]).ravel(),
                                  (states[MOMENTS // 2:].mean(0) - states[: MOMENTS // 2].mean(0)).ravel()]),
        "leak: file size": np.array([path.stat().st_size, path.stat().st_size / len(instances)]),
        "leak: length": np.array([len(instances)]),
        "leak: brightness": np.array([frames.mean(), frames.std(), *frames.mean((0, 1, 2))]),
        "leak: hand position": _state(truth, instances.shape[1:])[0, :2].ravel(),
    }


def _gather(root: Path, clips: list[str], workers: int) -> dict[str, np.ndarray]:
    # a forked copy of a process that has threads may hang, so workers are spawned
    with ProcessPoolExecutor(worker_count(workers), get_context("spawn")) as pool:
        rows = list(log.progress(pool.map(partial(evidence, root=root), clips, chunksize=16), total=len(clips),
                                 description="reading evidence"))
    return {key: np.stack([row[key] for row in rows]).astype(np.float32) for key in rows[0]}


def _forced_choice(log_probability: np.ndarray, classes: list[str], own: list[str], twin: list[str]) -> np.ndarray:
    """1 where a clip's class beats its twin's, one half at a tie."""
    place = {c: i for i, c in enumerate(classes)}
    rows = np.arange(len(own))
    difference = (log_probability[rows, [place[c] for c in own]] - log_probability[rows, [place[c] for c in twin]])
    return np.where(np.abs(difference) < 1e-9, 0.5, difference > 0).astype(float)


def _interval(correct: np.ndarray, sets: list[str], seed: int, resamples: int = 2000) -> dict[str, float]:
    """Mean with its 95% interval, by resampling whole sets: the clips of one set share a seed."""
    names, which = np.unique(sets, return_inverse=True)
    total, count = np.bincount(which, correct), np.bincount(which)
    drawn = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(correct.mean()), "low": float(low), "high": float(high)}


def measure(root: Path | str, *, seed: int = 0, trees: int = 200, workers: int = 0,
            skip: tuple[str, ...] = ()) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Ceilings and leaks of a rendered Tabletop: {"ceilings" | "leaks": {group: {probe: value, low, high}}}.

    Values are forced-choice accuracies within twins on test, with 95% intervals over sets. `skip` names clips to leave
    out (quarantined ones).
    """
    root, index = Path(root), load_index(root)
    clips = [c for c, row in index.items() if row["split"] != "validation" and c not in skip]
    features = _gather(root, clips, workers)
    train = np.array([index[c]["split"] == "train" for c in clips])
    group_of = np.array([index[c]["group"] for c in clips])
    out: dict = {"ceilings": {}, "leaks": {}}
    for group in sorted(set(group_of)):
        fit, ask = np.flatnonzero(train & (group_of == group)), np.flatnonzero(~train & (group_of == group))
        own, twin = ([index[index[clips[i]]["twin"] if t else clips[i]]["class"] for i in ask] for t in (False, True))
        sets = [index[clips[i]]["set"] for i in ask]
        scores = {}
        for probe, values in features.items():
            forest = ExtraTreesClassifier(trees, min_samples_leaf=2, max_features=0.3, random_state=seed, n_jobs=1)
            forest.fit(values[fit], [index[clips[i]]["class"] for i in fit])
            scores[probe] = np.log(forest.predict_proba(values[ask]) + 1e-3)
        classes = list(forest.classes_)
        scores["additive"] = scores["bag of frames"] + scores["true flow"]
        result = {p: _interval(_forced_choice(s, classes, own, twin), sets, seed) for p, s in scores.items()}
        out["ceilings"][group] = {p: result[p] for p in CEILINGS}
        out["leaks"][group] = {p: result[f"leak: {p}"] for p in LEAKS}
    return out
