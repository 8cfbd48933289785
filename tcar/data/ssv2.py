"""Read the annotation files of Something-Something-V2, and of everything written in their layout."""

import gc
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tcar.data.dataset_files import SUFFIXES, DatasetError, other_names, read_json, read_rows
from tcar.ground import log

LOG = log.get(__name__)
SPLITS = ("train", "validation", "test")
PREFIXES = ("", "something-something-v2-")  # of the annotation files, by release
VIDEO_FOLDERS = ("videos", "20bn-something-something-v2")


@dataclass(frozen=True, slots=True)
class Clip:
    """One annotated video; `label` is None where the answer is not known."""

    id: str
    path: Path
    label: int | None
    template: str
    caption: str
    placeholders: tuple[str, ...]


def find_annotation(root: str | Path, name: str) -> Path | None:
    """Find a file of either release, at the top or in `labels/`, where the official archive unpacks it."""
    for folder in (Path(root), Path(root, "labels")):
        for prefix in PREFIXES:
            if (path := folder / f"{prefix}{name}").is_file():
                return path
    return None


def _there(root: Path) -> str:
    """What lies in place of an annotation file that is missing: another suffix, capitals, an archive."""
    names = [entry.name for folder in (root, root / "labels") if folder.is_dir() for entry in folder.iterdir()]
    near = sorted(name for name in names if re.search(r"label|train|valid|test|answer|something", name, re.IGNORECASE))
    return f" (there are {', '.join(near[:8])})" if near else ""


def _strip(template: str) -> str:
    """Some templates bracket `[part]` or `[number of]`, so brackets are removed rather than matched."""
    return template.replace("[", "").replace("]", "")


def load_labels(root: str | Path) -> dict[str, int]:
    """Map every template text, without brackets, to its class index.

    Raises DatasetError when the folder or its label list is missing, or the indices are not 0..n-1.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such dataset folder; set data_root to the folder with labels.json")
    path = find_annotation(root, "labels.json")
    if path is None:
        raise DatasetError(
            f"{root}: no labels.json (nor something-something-v2-labels.json) in it or in its "
            f"labels/ folder{_there(root)}; unpack the label files of the dataset there"
        )
    try:
        labels = {_strip(template): _whole(index) for template, index in read_json(path, dict).items()}
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: a class index is not a whole number ({error})") from error
    if not labels or sorted(labels.values()) != list(range(len(labels))):
        raise DatasetError(
            f"{path}: the class indices must be 0 to n-1, each once; found {len(labels)} "
            f"templates with indices {sorted(set(labels.values()))[:5]}..."
        )
    return labels


def _whole(index: Any) -> int:
    if isinstance(index, bool) or not isinstance(index, int | str):
        raise TypeError(f"found {index!r}")
    return int(index)


def class_names(root: str | Path) -> list[str]:
    """The template texts in the order of their class index."""
    labels = load_labels(root)
    return sorted(labels, key=labels.__getitem__)


def load_split(root: str | Path, split: str) -> list[Clip]:
    """The clips of one split, in the order of its file.

    Reads `<split>.json` of either release, or `<split>.csv` with the columns `id,label_index`; the answers of
    `test` come from `test-answers.csv` (`id;template`) where it is present. No video is opened, and whether there is
    one is the audit's to say; where it is not called `<id>.webm`, but has another suffix, that name is taken. Raises
    DatasetError naming the file, the entry and the fix.
    """
    if split not in SPLITS:
        raise DatasetError(f"split {split!r} does not exist; choose one of {', '.join(SPLITS)}")
    root = Path(root)
    labels = load_labels(root)
    videos = next((root / name for name in VIDEO_FOLDERS if (root / name).is_dir()), root)
    if (path := find_annotation(root, f"{split}.json")) is not None:
        with _without_collector():
            clips = _from_json(path, labels, videos, _answers(root) if split == "test" else {})
    elif (path := find_annotation(root, f"{split}.csv")) is not None:
        with _without_collector():
            clips = _from_csv(path, sorted(labels, key=labels.__getitem__), videos)
    else:
        raise DatasetError(
            f"{root}: no {split}.json, something-something-v2-{split}.json or {split}.csv{_there(root)}; "
            "unpack the label files of the dataset there"
        )
    if len({clip.id for clip in clips}) != len(clips):
        seen: set[str] = set()
        twice = next(clip.id for clip in clips if clip.id in seen or seen.add(clip.id))
        raise DatasetError(f"{path}: clip {twice} is listed twice; each id may stand once in a split")
    return _as_named(clips, videos)


def _as_named(clips: list[Clip], videos: Path) -> list[Clip]:
    """The clips with the names that their files have, where these are not the usual ones."""
    others = other_names(videos)
    torn = [others[clip.id] for clip in clips if len(others.get(clip.id, ())) > 1] if others else []
    if torn:
        LOG.warning(
            f"{videos}: {len(torn)} clip(s) have several files, none of them .webm, and count as missing: "
            f"{', '.join(torn[0])}; keep one of each"
        )
    sole = {name: videos / names[0] for name, names in others.items() if len(names) == 1}
    return [replace(clip, path=sole[clip.id]) if clip.id in sole else clip for clip in clips] if sole else clips


@contextmanager
def _without_collector() -> Iterator[None]:
    """Hundreds of thousands of objects and no cycle among them: looking for one takes most of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _answers(root: Path) -> dict[str, str]:
    path = find_annotation(root, "test-answers.csv")
    if path is None:
        return {}
    answers: dict[str, str] = {}
    for number, cells in read_rows(path, ";"):
        if len(cells) != 2:
            raise DatasetError(f"{path}, line {number}: {';'.join(cells)!r} is not `id;template`")
        identifier, template = cells
        if _strip(answers.setdefault(identifier, template)) != _strip(template):
            raise DatasetError(
                f"{path}, line {number}: clip {identifier} is {template!r}, but {answers[identifier]!r} further up; "
                "keep the right one"
            )
    return answers


def _from_json(path: Path, labels: dict[str, int], videos: Path, answers: dict[str, str]) -> list[Clip]:
    clips = []
    known: dict[str, tuple[str, int | None]] = {"": ("", None)}  # one text for all clips of a template
    for entry in read_json(path, list):
        identifier = _identifier(path, entry.get("id") if isinstance(entry, dict) else None, entry)
        template = _text(path, entry, "template") or answers.get(identifier, "")
        if template not in known:
            known[template] = template, labels.get(_strip(template))
        template, label = known[template]
        if label is None and template:
            raise DatasetError(
                f"{path}: clip {identifier} has the template {template!r}, which is not in "
                "the label list; labels and split must come from the same release"
            )
        if label is None and _text(path, entry, "label"):
            raise DatasetError(f'{path}: clip {identifier} has a caption but no "template"')
        caption, names = _text(path, entry, "label"), _placeholders(path, entry)
        clips.append(Clip(identifier, videos / f"{identifier}.webm", label, template, caption, names))
    if answers and clips and not any(clip.id in answers for clip in clips):
        raise DatasetError(
            f"{path}: none of its {len(clips)} clips is among the {len(answers)} of test-answers.csv; both must come "
            "from the same release, and the answers must be `id;template`"
        )
    return clips


def _identifier(path: Path, value: Any, entry: Any) -> str:
    """The id of an entry, which is the name of a file without its suffix."""
    name = str(value).strip() if isinstance(value, (str, int)) and value is not True and value is not False else ""
    if name.isdecimal():
        return name
    if not name or "/" in name or name[0] == "." or name.lower().endswith(SUFFIXES):
        raise DatasetError(
            f'{path}: entry {str(entry)[:200]} has no "id" (the name of a video without its suffix: text, or a whole '
            "number)"
        )
    return name


def _text(path: Path, entry: dict, key: str) -> str:
    """A text of an entry; an empty one where there is none, or null."""
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise DatasetError(f'{path}: clip {entry["id"]} has the "{key}" {value!r}, expected text, or null for none')
    return value or ""


def _placeholders(path: Path, entry: dict) -> tuple[str, ...]:
    value = entry.get("placeholders") or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DatasetError(f'{path}: clip {entry["id"]} has the "placeholders" {value!r}, expected a list of texts')
    return tuple(value)


def _from_csv(path: Path, names: list[str], videos: Path) -> list[Clip]:
    clips = []
    rows = read_rows(path, ",")
    _, header = next(rows, (1, None))
    if header != ["id", "label_index"]:
        raise DatasetError(f"{path}: the first line must be `id,label_index`, found {header}")
    for number, row in rows:
        if len(row) != 2 or not row[1].isdecimal() or int(row[1]) >= len(names):
            last = len(names) - 1
            raise DatasetError(f"{path}, line {number}: {row} is not an id and a class index from 0 to {last}")
        identifier, label = _identifier(path, row[0], row), int(row[1])
        clips.append(Clip(identifier, videos / f"{identifier}.webm", label, names[label], "", ()))
    return clips


def fingerprint(clips: Sequence[Clip]) -> str:
    """Return a digest of ids, labels and file sizes in order: cheap, and another one for any repaired clip."""
    digest = hashlib.sha256()
    for clip in clips:
        size = clip.path.stat().st_size if clip.path.is_file() else -1
        digest.update(f"{clip.id} {clip.label} {size}\n".encode())
    return digest.hexdigest()


def flip_pairs(class_names: list[str]) -> dict[int, int]:
    """Class index to the index it becomes when the video is mirrored, for the classes that change.

    Derived from the texts: two names that differ by exchanging the words left and right are a pair. Flipping
    without this exchange costs one to two and a half points on Something-Something-V2.
    """
    index = {name: position for position, name in enumerate(class_names)}
    mirrored = {name: _mirrored(name) for name in index}
    return {index[name]: index[other] for name, other in mirrored.items() if other != name and other in index}


def without_mirror_image(class_names: list[str]) -> list[str]:
    """The classes that a mirror would change into one that is not among them: their clips must not be mirrored."""
    return [name for name in class_names if _mirrored(name) not in class_names]


def _mirrored(name: str) -> str:
    opposite = {"left": "right", "right": "left"}
    # What is pulled right out is pulled out entirely, to whatever side.
    return re.sub(r"\b(left|right)\b(?! out\b)", lambda word: opposite[word[0]], name)


def check_label_order(labels: Mapping[str, int | str], id2label: Mapping[int | str, str]) -> None:
    """Check that a checkpoint numbers its classes as the label list does: else its accuracy is that of chance.

    labels: text to index, as `load_labels` gives it or labels.json has it. id2label: index to text, as a checkpoint's
    configuration has it; brackets, capitals and spaces may differ. Raises DatasetError showing the first differences.
    """
    ours = {int(index): _strip(text) for text, index in labels.items()}
    theirs = {int(index): _strip(text) for index, text in id2label.items()}
    if all(re.fullmatch(r"LABEL_\d+", text) for text in theirs.values()):
        raise DatasetError(
            "id2label holds no class names (LABEL_0, …): the order of the classes cannot be checked; take the "
            "checkpoint's configuration from where it was published"
        )
    differing = [
        index for index in sorted(ours.keys() | theirs.keys()) if _plain(ours.get(index)) != _plain(theirs.get(index))
    ]
    if differing:
        shown = "; ".join(f"{k} is {ours.get(k)!r} here and {theirs.get(k)!r} there" for k in differing[:3])
        raise DatasetError(
            f"labels.json and the checkpoint's id2label disagree in {len(differing)} of {len(ours)} classes: {shown}. "
            "Bring the checkpoint's classes into the order of labels.json, or take the list it was trained with"
        )


def _plain(text: str | None) -> str | None:
    return None if text is None else " ".join(text.casefold().split())
