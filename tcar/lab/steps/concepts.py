"""Notebook 01: linear readers of single tokens, against the ground truth of Tabletop at the token's place.

Appearance: how much of the token's cell hands and objects cover, the outline and pattern of an object, whether a hand
holds something. Motion: flow, its direction, its speed. Readers are fitted on training clips and scored on validation
clips, whose objects they never saw; outline and pattern, of which no two splits share any, on other training sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tcar.data.video import read_segments
from tcar.evaluate import ratio_interval
from tcar.lab import results
from tcar.lab.steps.methods import bootstrap
from tcar.lab.steps.streams import stream
from tcar.streams.grids import pool_tokens
from tcar.streams.packaged import SEEDS, packaged
from tcar.streams.registry import create_stream, stream_cost
from tcar.tabletop.dataset import load_flow, load_index, load_truth
from tcar.tabletop.pretrain import training_code

if TYPE_CHECKING:
    from tcar.data.ssv2 import Clip
    from tcar.features import FeatureStore
    from tcar.lab.params import Params
    from tcar.streams.stream import Stream

CLIPS = {"train": 5, "validation": 3}  # of every class
# Pixels: the smallest input that still gives four rows of tokens, for grids that have no more.
SMALLER, SMALLEST_ROWS = {"dinov2_tiny": 56, "i3d_tiny": 64}, 4
MOVING = 0.3  # pixels a frame; below it a direction means nothing
# Whether something is in the hand on its way down and on its way up, by class.
IN_HAND = {109: (1, 0), 47: (0, 1), 74: (1, 1), 68: (0, 0), 106: (1, 0), 148: (0, 1), 72: (1, 1), 82: (0, 0)}
MEASURES = {
    "hand": "R2", "position": "R2", "outline": "accuracy", "pattern": "accuracy", "in hand": "accuracy",
    "flow": "R2", "direction": "accuracy", "speed": "R2",
}  # fmt: skip


def variants(run: Params, role: str) -> dict[str, Stream]:
    """Give what the stream of a role is compared with: other seeds, a smaller input, and no training at all."""
    name = getattr(run.streams, role)
    made = {
        f"trained from seed {seed}": create_stream(name, checkpoint=packaged(name, seed))
        for seed in SEEDS[1:]
        if packaged(name, seed).is_file()
    }
    if name in SMALLER and max(getattr(run.streams, f"{role}_grid")[1:]) <= SMALLEST_ROWS:
        checkpoint = run.stream_checkpoints[f"{role}_checkpoint"]
        made[f"{SMALLER[name]} pixels"] = create_stream(name, True, checkpoint, input_size=SMALLER[name])
    return made | {"untrained": create_stream(name, seed=run.common.seed)}


def concept_probes(run: Params, opened: dict[str, FeatureStore], found: dict[str, list[Clip]]) -> list[dict]:
    """Score what single tokens of both streams and of their variants know; without Tabletop's ground truth, nothing.

    The tokens of the streams in use are those of the stores. One row a role, variant and concept: `value` with its
    interval over twin sets, `chance`, `measure` (accuracy or R2), and the variant's `parameters` and `gflops` for one
    clip.
    """
    if run.data.dataset != "tabletop":
        return []
    stored = set.intersection(*(set(store.ids) for store in opened.values()))
    chosen = {
        split: _few_of_each([clip for clip in found[split] if clip.id in stored], count)
        for split, count in CLIPS.items()
    }
    clips = [clip for part in chosen.values() for clip in part]
    fitted = np.arange(len(clips)) < len(chosen["train"])
    grids = {role: tuple(store.grid) for role, store in opened.items()}
    asked = {grid: _targets(run, clips, fitted, grid) for grid in set(grids.values())}
    work = [
        (role, name, made)
        for role in grids
        for name, made in {"in use": stream(run, role), **variants(run, role)}.items()
    ]

    def read(job: tuple[str, str, Stream]) -> Float[np.ndarray, "clips n d"]:
        role, name, made = job
        if name == "in use":
            return opened[role].load([clip.id for clip in clips]).astype(np.float32)
        return _tokens(made, clips, opened[role].frames, grids[role])

    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the same order, whatever the machine; variants run side by side instead
    try:
        with ThreadPoolExecutor(run.workers) as pool:
            for (role, name, made), values in zip(work, pool.map(read, work), strict=True):
                cost = _cost(made, opened[role].frames)
                for concept, target in asked[grids[role]].items():
                    about = {"stream": role, "variant": name, "concept": concept, "measure": MEASURES[concept]}
                    rows.append(about | _score(run, values, target, MEASURES[concept]) | cost)
            return rows
    finally:
        torch.set_num_threads(threads)


def provenance(run: Params) -> dict[str, dict]:
    """Give what the package says of the small streams' weights, by file, and whether they are of the present code.

    `present code` is False where the stand-in scenes or the network have changed since (`training_code`).
    """
    rows = {}
    for name in (run.streams.semantic, run.streams.motion):
        told = [packaged(name, seed).with_suffix(".json") for seed in SEEDS]
        told = {path.stem: results.load(path) for path in told if path.is_file()}
        code = training_code(create_stream(name).backbone) if told else {}
        for stem, row in told.items():
            kept = {key: row[key] for key in ("trained_on", "epochs", "seed", "seconds")}
            scores = {key: round(value, 3) for key, value in row["held_out_scores"].items()}
            rows[stem] = {"present code": row["code"] == code} | kept | scores
    return rows


def _few_of_each(found: list[Clip], count: int) -> list[Clip]:
    by_class: dict[int, list[Clip]] = {}
    for clip in found:
        by_class.setdefault(clip.label, []).append(clip)
    return [clip for part in by_class.values() for clip in part[:count]]


def _cost(made: Stream, frames: int) -> dict:
    cost = stream_cost(made, frames)
    return {"parameters": cost["parameters"], "gflops": cost["gflops"]}


def _tokens(made: Stream, clips: list[Clip], frames: int, grid: tuple[int, int, int]) -> Float[np.ndarray, "clips n d"]:
    """Pooled tokens of every clip, eight clips at a time."""
    rows = []
    for start in range(0, len(clips), 8):
        videos = np.stack([read_segments(clip.path, frames) for clip in clips[start : start + 8]])
        with torch.inference_mode():
            rows.append(pool_tokens(made(torch.from_numpy(videos)), grid).values.flatten(1, 2).numpy())
    return np.concatenate(rows)


def _targets(run: Params, clips: list[Clip], fitted: np.ndarray, grid: tuple[int, int, int]) -> dict[str, tuple]:
    """Of every concept: which tokens are read (clip, token), what is true of them, which are fitted, and their sets.

    A concept of which the clips show one kind alone, or nothing to score, is left out.
    """
    index = load_index(run.data_root)
    sets = np.array([index[clip.id]["set"] for clip in clips])
    truths = [_cells(run, clip, grid) for clip in clips]
    everywhere = np.indices((len(clips), int(np.prod(grid)))).reshape(2, -1).T
    targets = {}
    for concept in ("hand", "position", "flow", "speed"):
        targets[concept] = everywhere, np.concatenate([truth[concept] for truth in truths])
    flow = targets["flow"][1]
    moving = targets["speed"][1][:, 0] > MOVING
    # right, down, left, up
    turns = np.round(np.arctan2(flow[moving, 1], flow[moving, 0]) / (np.pi / 2)).astype(int) % 4
    targets["direction"] = everywhere[moving], turns
    for concept in ("outline", "pattern"):
        known = [i for i in np.flatnonzero(fitted) if concept in truths[i]]
        targets[concept] = _columns([((i, truths[i]["cell"]), truths[i][concept]) for i in known])
    held = [((i, cell), bit) for i, truth in enumerate(truths) for cell, bit in truth["in hand"]]
    targets["in hand"] = _columns(held)
    # a fourth of the training sets, for what no other split shares
    names = sorted(set(sets[fitted]))
    apart = np.isin(sets, names[::4])
    asked = {}
    for concept in MEASURES:
        where, true = targets[concept]
        learned = (fitted & ~apart if concept in ("outline", "pattern") else fitted)[where[:, 0]]
        rest = true[~learned]
        varies = len(rest) and (MEASURES[concept] != "R2" or np.ptp(rest, axis=0).any())  # R2 compares with the mean
        if len(np.unique(true[learned])) > 1 and varies:
            asked[concept] = where, true, learned, sets[where[:, 0]]
    return asked


def _columns(rows: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    where = np.array([place for place, _ in rows], int).reshape(-1, 2)
    return where, np.array([value for _, value in rows])


def _cells(run: Params, clip: Clip, grid: tuple[int, int, int]) -> dict:
    """The ground truth of a clip in the cells of a grid."""
    truth, ids = load_truth(run.data_root, clip.id)
    hands = [entry["id"] for entry in truth["instances"] if entry["category"] == "hand"]
    things = [entry for entry in truth["instances"] if entry["category"] != "hand" and entry["shape"]]
    share = {entry["id"]: _pool(ids == entry["id"], grid) for entry in things}
    hand, flow = _pool(np.isin(ids, hands), grid), _pool(load_flow(run.data_root, clip.id), grid)
    cells = {
        "hand": hand,
        "position": sum(share.values(), np.zeros_like(hand)),
        "flow": flow,
        "speed": np.hypot(flow[:, :1], flow[:, 1:]),
        "in hand": [],
    }
    if things:
        seen = max(things, key=lambda entry: share[entry["id"]].max())
        cells |= {"cell": int(share[seen["id"]].argmax()), "outline": seen["shape"]}
        cells["pattern"] = seen["texture"].split()[0]
    if truth["class"] in IN_HAND and grid[0] >= 2:
        middle, place = grid[0] // 2, hand.reshape(grid[0], -1)
        cells["in hand"] = [
            (moment * place.shape[1] + int(place[moment].argmax()), bit)
            for moment, bit in zip((middle - 1, middle), IN_HAND[truth["class"]], strict=True)
        ]
    return cells


def _pool(values: np.ndarray, grid: tuple[int, int, int]) -> Float[np.ndarray, "n c"]:
    volume = torch.from_numpy(values.astype(np.float32)).reshape(*values.shape[:3], -1)
    return F.adaptive_avg_pool3d(volume.movedim(-1, 0)[None], grid)[0].flatten(1).T.numpy()


def _score(run: Params, tokens: np.ndarray, target: tuple[np.ndarray, ...], measure: str) -> dict:
    """Fit a linear reader on the fitted rows of a target, and score the others, with an interval over twin sets."""
    where, true, fitted, sets = target
    features = tokens[where[:, 0], where[:, 1]]
    if measure == "R2":
        reader = make_pipeline(StandardScaler(), Ridge(10.0)).fit(features[fitted], true[fitted])
        rest = true[~fitted]
        error = ((rest - reader.predict(features[~fitted]).reshape(rest.shape)) ** 2).sum(1)
        parts, chance = (((rest - rest.mean(0)) ** 2).sum(1) - error, ((rest - rest.mean(0)) ** 2).sum(1)), 0.0
    else:
        reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, tol=1e-3))
        reader.fit(features[fitted], true[fitted])
        rest = true[~fitted]
        parts = (reader.predict(features[~fitted]) == rest).astype(float), np.ones(len(rest))
        chance = float(np.unique(rest, return_counts=True)[1].max() / len(rest))
    return ratio_interval(*parts, sets[~fitted], bootstrap(run)) | {"chance": chance}
