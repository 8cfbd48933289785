import csv
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from tcar.data.ssv2 import (
    Clip,
    DatasetError,
    check_label_order,
    class_names,
    flip_pairs,
    load_labels,
    load_split,
    without_mirror_image,
)

LABELS = {"Holding something": "1", "Approaching something": "0", "Tearing part of something": "2"}
TRAIN = [
    {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
    {
        "id": "5",
        "label": "tearing the edge of a page",
        "template": "Tearing [part] of [something]",
        "placeholders": ["the edge", "a page"],
    },
]


# The classes of the real list that a mirror changes, at their places there.
MIRRORED = {
    86: "Pulling something from left to right", 87: "Pulling something from right to left",
    93: "Pushing something from left to right", 94: "Pushing something from right to left",
    166: "Turning the camera left while filming something", 167: "Turning the camera right while filming something",
}  # fmt: skip


def write_lists(root: Path) -> Path:
    """Lists as the real ones: 174 classes, `id,label_index`, the clips of a class scattered."""
    names = [MIRRORED.get(index, f"Showing something {index} times") for index in range(174)]
    (root / "labels.json").write_text(json.dumps({name: str(index) for index, name in enumerate(names)}))
    for split, most in (("train", 9), ("validation", 2)):
        labels = [index for index in range(174) for _ in range(2 + index % most)]
        random.Random(split).shuffle(labels)
        rows = [f"{place * 7},{label}" for place, label in enumerate(labels)]
        (root / f"{split}.csv").write_text("\n".join(["id,label_index", *rows]) + "\n")
    return root


def write_dataset(root: Path, prefix: str = "", folder: str = "") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "videos").mkdir()
    contents = {
        "labels": LABELS,
        "train": TRAIN,
        "validation": TRAIN[:1],
        "test": [{"id": "11"}, {"id": "12"}],
    }
    for name, content in contents.items():
        (root / folder / f"{prefix}{name}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(("prefix", "folder"), [("", ""), ("something-something-v2-", "labels")])
def test_either_naming_gives_the_same_clips(tmp_path, prefix, folder):
    root = write_dataset(tmp_path, prefix, folder)
    assert class_names(root) == ["Approaching something", "Holding something", "Tearing part of something"]
    assert load_split(root, "train") == [
        Clip(
            "78687", root / "videos" / "78687.webm", 1, "Holding [something]", "holding potato", ("potato",)
        ),
        Clip(
            "5",
            root / "videos" / "5.webm",
            2,
            "Tearing [part] of [something]",
            "tearing the edge of a page",
            ("the edge", "a page"),
        ),
    ]
    assert [clip.label for clip in load_split(root, "test")] == [None, None]
    (root / folder / "test-answers.csv").write_text("12;Holding something\n11;Tearing [part] of [something]\n")
    assert [(clip.id, clip.label) for clip in load_split(root, "test")] == [("11", 2), ("12", 1)]


def test_videos_are_looked_for_where_the_dataset_keeps_them(tmp_path):
    root = write_dataset(tmp_path)
    (root / "videos").rmdir()
    assert load_split(root, "train")[0].path == root / "78687.webm"
    (root / "20bn-something-something-v2").mkdir()
    assert load_split(root, "train")[0].path == root / "20bn-something-something-v2" / "78687.webm"


def test_lists_with_numbers_of_classes(tmp_path):
    root = write_lists(tmp_path)
    train, validation = (load_split(root, split) for split in ("train", "validation"))
    counts = Counter(clip.label for clip in train)
    assert counts == {index: 2 + index % 9 for index in range(174)}
    assert {clip.template for clip in train if clip.label == 93} == {"Pushing something from left to right"}
    with (root / "validation.csv").open() as file:
        assert [(clip.id, str(clip.label)) for clip in validation] == [
            tuple(row) for row in csv.reader(file)
        ][1:]


def test_flip_pairs_of_the_real_labels(tmp_path):
    names = class_names(write_lists(tmp_path))
    assert flip_pairs(names) == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    assert without_mirror_image(names) == []


def test_words_that_only_contain_a_direction_are_no_pair():
    names = [
        "Putting something upright",
        "Putting something upleft",
        "Turning left",
        "Bright right",
        "Bright left",
    ]
    assert flip_pairs(names) == {3: 4, 4: 3}
    assert without_mirror_image(names) == ["Turning left"]


def test_a_folder_without_labels(tmp_path):
    with pytest.raises(DatasetError, match=r"no labels\.json.*unpack"):
        load_labels(tmp_path)
    with pytest.raises(DatasetError, match="nowhere: no such dataset folder; set data_root"):
        load_labels(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('{"a": "0", "b": "2"}', "must be 0 to n-1"),
        ('{"a": "0", "b": "0"}', "must be 0 to n-1"),
        ('{"a": "first"}', "not a whole number"),
    ],
)
def test_a_label_list_that_cannot_be_trusted(tmp_path, labels, message):
    (tmp_path / "labels.json").write_text(labels)
    with pytest.raises(DatasetError, match=message):
        load_labels(tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [TRAIN[0] | {"template": "Juggling [something]"}],
            r"train.json: clip 78687 .*'Juggling \[something\]'.*not in the",
        ),
        ([{"id": "3", "label": "holding potato"}], 'clip 3 has a caption but no "template"'),
        ([TRAIN[0], TRAIN[1], TRAIN[0]], "clip 78687 is listed twice"),
    ],
)
def test_entries_that_do_not_fit(tmp_path, entries, message):
    root = write_dataset(tmp_path)
    (root / "train.json").write_text(json.dumps(entries))
    with pytest.raises(DatasetError, match=message):
        load_split(root, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7,1\n", "the first line must be `id,label_index`"),
        ("id,label_index\n7,1\n8,3\n", r"train.csv, line 3: .*from 0 to 2"),
        ("id,label_index\n7,-1\n", "train.csv, line 2"),
        ("id,label_index\n7\n", "train.csv, line 2"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_split(tmp_path, "train")


def test_a_split_that_is_not_there(tmp_path):
    root = write_dataset(tmp_path)
    (root / "validation.json").unlink()
    with pytest.raises(DatasetError, match=r"no validation\.json"):
        load_split(root, "validation")
    with pytest.raises(DatasetError, match="'val' does not exist; choose one of train, validation, test"):
        load_split(root, "val")
    (root / "test-answers.csv").write_text("11;Holding something\n12,Holding something\n")
    with pytest.raises(DatasetError, match="test-answers.csv, line 2"):
        load_split(root, "test")


def as_a_checkpoint_has_it(root: Path) -> dict[str, str]:
    """The list as published configurations spell it: index as text, words that are filled in brackets."""
    listed = json.loads((root / "labels.json").read_text())
    return {index: re.sub(r"\b([Ss]omething)\b", r"[\1]", text) for text, index in listed.items()}


def test_a_checkpoint_with_the_same_classes_passes(tmp_path):
    root = write_lists(tmp_path)
    labels, theirs = load_labels(root), as_a_checkpoint_has_it(root)
    raw = json.loads((root / "labels.json").read_text())
    for id2label in (theirs, {int(k): v for k, v in theirs.items()}, dict(enumerate(class_names(root)))):
        check_label_order(labels, id2label)
        check_label_order(raw, id2label)


def test_a_checkpoint_with_other_classes_or_another_order_does_not(tmp_path):
    root = write_lists(tmp_path)
    labels, theirs = load_labels(root), as_a_checkpoint_has_it(root)
    swapped = theirs | {"86": theirs["87"], "87": theirs["86"]}
    with pytest.raises(DatasetError, match=r"disagree in 2 of 174 .*: 86 is 'Pulling something from left .*; 87 is "):
        check_label_order(labels, swapped)
    with pytest.raises(DatasetError, match=r"disagree in 1 of 174 .*: 173 is .* and None there"):
        check_label_order(labels, {k: v for k, v in theirs.items() if k != "173"})
    alphabetical_as_text = dict(zip(sorted(theirs), theirs.values(), strict=True))  # "10" before "2"
    with pytest.raises(DatasetError, match="disagree in 17. of 174"):
        check_label_order(labels, alphabetical_as_text)
    with pytest.raises(DatasetError, match="holds no class names"):
        check_label_order(labels, {i: f"LABEL_{i}" for i in range(174)})
