"""Label files as other programs and downloads leave them: read as what they mean, or one error that says what it is."""

import json
from pathlib import Path

import pytest
from test_ssv2 import LABELS, TRAIN, write_dataset

from tcar.data.health import check
from tcar.data.monitor import monitor
from tcar.data.ssv2 import DatasetError, load_labels, load_split

ANSWERS = "11;Holding something\n12;Approaching something\n"


def answers(root: Path, content: str | bytes) -> list[int | None]:
    (root / "test-answers.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return [clip.label for clip in load_split(root, "test")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-16-be"])
def test_text_in_any_encoding_that_can_be_told(tmp_path, encoding):
    root = write_dataset(tmp_path)
    plain = load_split(root, "train")
    for name in ("labels.json", "train.json"):
        (root / name).write_bytes((root / name).read_text().encode(encoding))
    assert load_split(root, "train") == plain
    assert answers(root, ANSWERS.encode(encoding)) == [1, 0]
    (root / "validation.json").unlink()
    (root / "validation.csv").write_bytes("id,label_index\n7,2\n".encode(encoding))
    assert [(clip.id, clip.label) for clip in load_split(root, "validation")] == [("7", 2)]


@pytest.mark.parametrize("content", [
    ANSWERS.replace("\n", "\r\n"), ANSWERS.replace("\n", "\r"), ANSWERS.replace("\n", ";;\n"), f"\n\n{ANSWERS};;\n \n",
    '"11";"Holding something"\n"12";"Approaching something"\n', " 11 ; Holding [something] \n12;Approaching something",
    f"id;template\n{ANSWERS}{ANSWERS}",
])  # fmt: skip
def test_answers_as_spreadsheets_write_them(tmp_path, content):
    assert answers(write_dataset(tmp_path), content) == [1, 0]


@pytest.mark.parametrize(("content", "message"), [
    (ANSWERS.encode() + "13;Déplacer".encode("latin-1"), r"answers\.csv, line 3: byte 0xe9 is not UTF-8; .*Latin-1"),
    (ANSWERS + "11;Approaching something\n", r"line 3: clip 11 is 'Approaching something', but 'Holding someth"),
    (ANSWERS.replace(";", "\t"), r"line 1: '11\\tHolding something' is not `id;template`"),
    (ANSWERS.replace("11", "1").replace("12", "2"), "none of its 2 clips is among the 2 of test-answers.csv"),
    ("11;Holding something;more\n", "line 1: '11;Holding something;more' is not"),
    ("<!DOCTYPE html><title>Sign in</title>", "test-answers.csv: a web page, saved in its place"),
])  # fmt: skip
def test_answers_that_cannot_be_trusted(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message):
        answers(write_dataset(tmp_path), content)


def test_what_is_null_is_not_there(tmp_path):
    root = write_dataset(tmp_path)
    entry = {"id": 78687, "template": "Holding [something]", "label": None, "placeholders": None}
    (root / "train.json").write_text(json.dumps([entry]))
    (clip,) = load_split(root, "train")
    assert (clip.id, clip.label, clip.caption, clip.placeholders) == ("78687", 1, "", ())
    (root / "test.json").write_text(json.dumps([{"id": "11", "template": None, "label": None}]))
    assert answers(root, ANSWERS) == [1]


@pytest.mark.parametrize(("changed", "message"), [
    ({"template": float("nan")}, r'train\.json: clip 78687 has the "template" nan, expected text'),
    ({"label": 3}, 'clip 78687 has the "label" 3, expected text'),
    ({"placeholders": "potato"}, "clip 78687 has the \"placeholders\" 'potato', expected a list of texts"),
    ({"placeholders": ["potato", None]}, 'has the "placeholders"'),
    ({"id": None}, 'has no "id"'), ({"id": 78687.0}, 'has no "id"'), ({"id": "../78687"}, 'has no "id"'),
    ({"id": "78687.webm"}, 'has no "id"'),
])  # fmt: skip
def test_an_entry_with_something_else(tmp_path, changed, message):
    root = write_dataset(tmp_path)
    (root / "train.json").write_text(json.dumps([TRAIN[0] | changed]))
    with pytest.raises(DatasetError, match=message):
        load_split(root, "train")


@pytest.mark.parametrize(("content", "message"), [
    (b"\n<html><body>Sign in", "labels.json: a web page, saved in its place"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "labels.json: a pointer of Git LFS"),
    (b"", r"labels\.json: not valid JSON \(it is empty\)"),
    (b'{"a": "0"}\n{"b": "1"}\n', "it has one object a line"),
    (b"PK\x03\x04", "a zip under this name; unpack it"),
    (b'{"a": 0.5, "b": 1}', r"not a whole number \(found 0\.5\)"),
    (b'{"a": null}', "not a whole number"), (b'{"a": true, "b": 0}', "not a whole number"),
    (b'["a", "b"]', "holds a list, expected a dict"),
])  # fmt: skip
def test_what_lies_in_place_of_a_label_list(tmp_path, content, message):
    (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_labels(tmp_path)


def test_label_files_under_another_name_are_named(tmp_path):
    (tmp_path / "Labels.json.txt").write_text("{}")
    with pytest.raises(DatasetError, match=r"no labels\.json .*\(there are Labels\.json\.txt\)"):
        load_labels(tmp_path)


def test_a_list_of_classes_with_blank_rows_and_separators_at_the_end(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    (tmp_path / "train.csv").write_text('id,label_index,\r\n"7",1,\r\n\r\n8,2,,\r\n')
    assert [(clip.id, clip.label) for clip in load_split(tmp_path, "train")] == [("7", 1), ("8", 2)]


def test_videos_with_another_suffix_are_found_where_there_is_one_of_them(tmp_path, caplog):
    root = write_dataset(tmp_path)
    (root / "train.json").write_text(json.dumps([TRAIN[0] | {"id": str(number)} for number in range(1, 8)]))
    there = ["1.webm", "2.mp4", "3.WEBM", "4.MKV", "5.mp4", "5.avi", "6.webm", "6.mp4", "._7.mp4", "8.mov", "1.json"]
    for name in there:
        (root / "videos" / name).write_bytes(b"")
    clips = load_split(root, "train")
    named = ["1.webm", "2.mp4", "3.WEBM", "4.MKV", "5.webm", "6.webm", "7.webm"]
    assert [clip.path.name for clip in clips] == named
    assert [check(clip).reason == "missing" for clip in clips] == [name not in there for name in named]
    assert "1 clip(s) have several files, none of them .webm, and count as missing: 5.avi, 5.mp4" in caplog.text
    found = monitor({"train": clips}, root / "audit", workers=1)
    assert found["unlisted"] == ["._7.mp4", "5.avi", "5.mp4", "6.mp4", "8.mov"]
