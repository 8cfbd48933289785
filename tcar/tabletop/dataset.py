"""Writing Tabletop to a folder: VP9 videos, the official annotation files, and the ground truth of every clip."""

import csv
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av  # before decord anywhere in the process: the other way round the VP9 encoder fails with EINVAL
import numpy as np
from jaxtyping import Float, UInt8

from tcar.data.ssv2 import DatasetError
from tcar.data.workers import worker_count
from tcar.ground import files, locks, log, sources
from tcar.ground.processes import pool
from tcar.tabletop import folder
from tcar.tabletop.controls import CONTROLS, apply
from tcar.tabletop.family import Family
from tcar.tabletop.folder import DATASHEET, INDEX, TRUTH, VIDEOS
from tcar.tabletop.scene import Rendering, Scene, render
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.stage import DIFFICULTY, Stage
from tcar.tabletop.templates import FAMILIES, LABELS

SPLITS = ("train", "validation", "test")
APPEARANCE = ("width", "height", "frame_rate", "lengths", "difficulty", "control")  # settings of every clip
STANDARD = TabletopSettings()
# The modules that decide what a clip shows.
DRAWING = ("scene", "family", "moving", "meeting", "handling", "templates", "assets", "stage", "controls")
FLOW_STRIDE = 8  # pixels between the places at which the ground truth keeps the flow


def write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"], frame_rate: int) -> None:
    """Encode RGB frames as VP9 in WebM; the same frames give the same bytes."""
    # one thread, and no random identifier or library version in the container
    # libav takes a colon in a name for the end of a protocol's
    with av.open(f"file:{path}", "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=frame_rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0", "lag-in-frames": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def check(drawn: TabletopSettings) -> None:
    """Raise ValueError, naming the setting and the fix, for a rendering that cannot be drawn."""
    if drawn.width * 3 != drawn.height * 4:
        raise ValueError(f"width, height: Tabletop is drawn at 4:3, not {drawn.width} x {drawn.height}; "
                         "try 160 x 120 or 320 x 240")
    if not drawn.lengths or min(drawn.lengths) < 16 or any(length % 2 for length in drawn.lengths):
        raise ValueError(f"lengths: even numbers of at least 16 frames are needed, not {list(drawn.lengths)}")
    if drawn.difficulty not in DIFFICULTY:
        raise ValueError(f"difficulty: {drawn.difficulty!r} is not one of {', '.join(DIFFICULTY)}")
    if drawn.control and drawn.control not in CONTROLS:
        raise ValueError(f"control: {drawn.control!r} is not one of {', '.join(CONTROLS)}")


@dataclass(frozen=True)
class SetPlan:
    """One set: the clips that share a seed, with their ids in the order of the family's classes."""

    family: str
    split: str
    number: int
    seed: tuple[int, ...]
    ids: tuple[str, ...]


def plan_sets(families: list[Family], counts: dict[str, int], seed: int) -> list[SetPlan]:
    """Every set of the dataset with ids that tell nothing: numbered by a seeded shuffle over all clips."""
    sets = [(f, split, n) for split in SPLITS for f in families for n in range(counts[split])]
    total = sum(len(f.classes) for f, _, _ in sets)
    ids = iter(np.random.default_rng(seed).permutation(total) + 1)
    order = list(FAMILIES)
    return [
        SetPlan(f.name, split, n, (seed, SPLITS.index(split), order.index(f.name), n),
                tuple(str(next(ids)) for _ in f.classes))
        for f, split, n in sets
    ]


@dataclass(frozen=True)
class Part:
    """Of a dataset, the first `sets` of each family (0: all) in some splits: clip by clip those of the whole."""

    splits: tuple[str, ...] = SPLITS
    sets: int = 0

    def of(self, plans: list[SetPlan]) -> list[SetPlan]:
        """The sets that are of this part, with the ids and seeds that they have in the whole."""
        return [p for p in plans if p.split in self.splits and (not self.sets or p.number < self.sets)]


def chosen_families(classes: list[int]) -> list[Family]:
    """The families that the classes asked for belong to; a class without its family's others is an error."""
    unknown = sorted(set(classes) - set(LABELS))
    if unknown:
        raise ValueError(f"classes: Tabletop has no template for {unknown}; it has {sorted(LABELS)}")
    families = [f for f in FAMILIES.values() if not classes or set(f.classes) & set(classes)]
    for f in families:
        missing = set(f.classes) - set(classes)
        if classes and missing:
            raise ValueError(f"classes: family {f.name} shares a seed over {sorted(f.classes)}; add {sorted(missing)}")
    return families


def render_dataset(
    root: Path | str, drawn: TabletopSettings, *, seed: int = 0, workers: int = 0, limit: int = 0,
    part: Part | None = None,
) -> Path:  # fmt: skip
    """Render Tabletop to `root` in the layout of the real dataset and return the folder.

    Sets are counted per twin family; each renders every class of its family once. What the folder already holds of the
    dataset of these settings and this code is kept; clips of another are deleted, and nothing else is. `workers` 0
    means all cores; the result does not depend on it. `limit` above 0 stops after so many clips: the videos and their
    ground truth are there, the annotation files come when a later call without a limit completes the set. `part`
    renders no more than that of the dataset, each clip as it is in the whole; splits without a clip have empty files.

    Raises ValueError for settings that cannot be drawn, DatasetError for a folder that holds other things or that
    another command renders into.
    """
    check(drawn)
    root = Path(root)
    counts = dict(zip(SPLITS, (drawn.train_sets, drawn.validation_sets, drawn.test_sets), strict=True))
    families = chosen_families(list(drawn.classes))
    recipe = {"classes": sorted(c for f in families for c in f.classes), "sets": counts,
              **{key: getattr(drawn, key) for key in APPEARANCE}, "seed": seed,
              "code": sources.code_digest(*(f"tcar.tabletop.{module}" for module in DRAWING)),
              **({"part": asdict(part)} if part else {})}
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    plans = plan_sets(families, counts, seed)
    clips = sum(len(p.ids) for p in plans)
    plans = part.of(plans) if part else plans
    if limit:
        ends = np.cumsum([len(p.ids) for p in plans])
        plans = plans[: int(np.searchsorted(ends, limit)) + 1]
    if folder.holds(root, fingerprint) and not _todo(root, plans) and (limit or folder.annotated(root)):
        return root
    folder.refuse_foreign(root)  # before a lock is left there
    busy = f"{root}: another command renders into this folder; wait for it"
    with locks.alone(root / locks.FILE, DatasetError, busy):
        folder.take(root, fingerprint, clips)
        todo = _todo(root, plans)
        with pool(worker_count(workers)) as processes:
            jobs = processes.map(_render_set, todo, [root] * len(todo), [drawn] * len(todo), chunksize=4)
            for _ in log.progress(jobs, total=len(todo), description="rendering sets") if todo else ():
                pass
        if not limit and (todo or not folder.annotated(root)):
            _write_annotations(root, plans)
    return root


def _todo(root: Path, plans: list[SetPlan]) -> list[SetPlan]:
    return [plan for plan in plans if folder.missing(root, plan.ids)]


def draw(plan: SetPlan, drawn: TabletopSettings = STANDARD) -> dict[int, Scene]:
    """The scenes of one set, class index -> scene."""
    stage = Stage(plan.split, list(plan.seed), tuple(drawn.lengths), drawn.difficulty, plan.number)
    return FAMILIES[plan.family].draw(stage)


def _render_set(plan: SetPlan, root: Path, drawn: TabletopSettings) -> None:
    import cv2

    cv2.setNumThreads(1)  # one process a core; OpenCV's own threads would fight them
    family, scenes = FAMILIES[plan.family], draw(plan, drawn)
    ids = dict(zip(family.classes, plan.ids, strict=True))
    for index, clip in ids.items():
        scene, size = scenes[index], (drawn.width, drawn.height)
        if drawn.control:
            scene, rendering = apply(drawn.control, scene, family, plan.seed, *size)
        else:
            rendering = render(scene, *size)
        truth = describe(scene, rendering, clip) | {
            "template": LABELS[index], "class": index, "group": family.pair_of(index).group,
            "family": family.name, "variant": scene.variant, "set": f"{plan.split}-{plan.family}-{plan.number}",
            "twin": ids[family.twin_of(index)], "seed": list(plan.seed),
        }
        flow = rendering.flow(stride=FLOW_STRIDE).astype(np.float16)
        with files.drafted(root / TRUTH / f"{clip}.npz") as draft:
            np.savez_compressed(draft, instances=rendering.instances, flow=flow)
        files.write_text(root / TRUTH / f"{clip}.json", json.dumps(truth))
        with files.drafted(root / VIDEOS / f"{clip}.webm") as draft:  # last: a video is never without its truth
            write_video(draft, rendering.frames, drawn.frame_rate)


def describe(scene: Scene, rendering: Rendering, clip: str) -> dict:
    """The ground truth of a clip as plain data; boxes in the Something-Else form (Materzynska et al., 2020)."""
    names = scene.instances()
    first = {item.instance: item for item in reversed(scene.items)}
    frames = []
    for t, ids in enumerate(rendering.instances):
        labels = []
        for identity, instance in enumerate(names, 1):
            rows, columns = np.any(ids == identity, 1).nonzero()[0], np.any(ids == identity, 0).nonzero()[0]
            if len(rows):
                box = {"x1": int(columns[0]), "y1": int(rows[0]), "x2": int(columns[-1]) + 1, "y2": int(rows[-1]) + 1}
                hand = first[instance].category == "hand"
                labels.append({"instance": identity, "box2d": box, "gt_annotation": instance,
                               "standard_category": "hand" if hand else f"{identity - 1:04d}"})
        depth = {names.index(i.instance) + 1: float(i.depth[t]) for i in scene.items}
        frames.append({"name": f"{clip}/{t + 1:04d}.jpg", "depth_order": sorted(depth, key=depth.get),
                       "labels": labels})
    instances = [
        {"id": i, "name": n, "category": first[n].category, "shape": first[n].shape or first[n].posture,
         "texture": first[n].texture.name if first[n].texture else "skin"}
        for i, n in enumerate(names, 1)
    ]
    return {"id": clip, "moving": [names.index(n) + 1 for n in scene.moving], "placeholders": list(scene.placeholders),
            "events": [{"name": n, "start": a, "end": b} for n, a, b in scene.events], "instances": instances,
            "frames": frames}


def _write_annotations(root: Path, plans: list[SetPlan]) -> None:
    texts = sorted(LABELS[c] for f in {p.family for p in plans} for c in FAMILIES[f].classes)
    index, entries = {}, {split: [] for split in SPLITS}
    for plan in plans:
        for clip in plan.ids:
            truth = _read(root / TRUTH / f"{clip}.json")
            entries[plan.split].append(entry(clip, truth["template"], truth["placeholders"]))
            index[clip] = {"split": plan.split, "class": truth["template"]}
            index[clip] |= {key: truth[key] for key in ("group", "variant", "set", "twin", "seed")}
    write_annotations(root, texts, entries)
    files.write_text(root / DATASHEET, Path(__file__).with_name(DATASHEET).read_text(encoding="utf-8"))
    files.write_text(root / TRUTH / INDEX, json.dumps(index))


def entry(clip: str, template: str, words: Sequence[str]) -> dict:
    """A clip as the official files have it: template with brackets, caption filled in with words."""
    bracketed = template.replace("something", "[something]").replace("Something", "[Something]")
    caption = template
    for word in words:
        caption = caption.replace("something", word, 1)
    return {"id": clip, "label": caption, "template": bracketed, "placeholders": list(words)}


def write_annotations(root: Path, texts: Sequence[str], entries: Mapping[str, Sequence[dict]]) -> None:
    """Write the official files: `texts` are the classes in the order of their index, `entries` the clips by split."""
    files.write_text(root / "labels.json", json.dumps({text: str(i) for i, text in enumerate(texts)}, indent=1))
    for split in SPLITS:
        # the order of the file must not tell the class: the ids are already random
        rows = sorted(entries[split], key=lambda e: int(e["id"]))
        if split == "test":
            answers = io.StringIO()
            csv.writer(answers, delimiter=";").writerows((r["id"], r["template"].replace("[", "").replace("]", ""))
                                                         for r in rows)
            files.write_text(root / "test-answers.csv", answers.getvalue())
            rows = [{"id": r["id"]} for r in rows]
        files.write_text(root / f"{split}.json", json.dumps(rows))


def load_index(root: Path | str) -> dict[str, dict]:
    """What every clip is: id -> split, class (template text), group, set, twin (id) and seed."""
    path = Path(root) / TRUTH / INDEX
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: this folder is no Tabletop dataset; render one with notebook 00")
    return _read(path)


def load_truth(root: Path | str, clip: str) -> tuple[dict, UInt8[np.ndarray, "t h w"]]:
    """The ground truth of one clip and its instance map (0 is the background)."""
    path = Path(root) / TRUTH / f"{clip}.json"
    return _read(path), _array(path.with_suffix(".npz"), "instances")


def load_flow(root: Path | str, clip: str) -> Float[np.ndarray, "s h2 w2 2"]:
    """The true flow (x, y) from each frame to the next, in pixels, at every FLOW_STRIDE-th pixel."""
    return _array(Path(root) / TRUTH / f"{clip}.npz", "flow").astype(np.float32)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error


def _array(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path}: damaged ({error}); delete it and render again (notebook 00)")
