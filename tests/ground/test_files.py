"""A file is there whole or not at all, whatever happens while it is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from tcar.ground import files
from tcar.lab import pipeline

SLOW = """
import sys, time
from pathlib import Path
from tcar.ground import files
with files.drafted(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_an_error_while_writing_leaves_what_was_there_and_no_draft(tmp_path):
    target = tmp_path / "x.json"
    files.write_text(target, "old")

    def stop_half_way():
        with files.drafted(target) as draft:
            draft.write_text("half")
            assert draft.suffix == ".json"
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop_half_way()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert target.read_text() == "old"


def test_a_killed_writer_leaves_the_old_file_and_its_draft_is_dropped_once_it_is_gone(tmp_path):
    target = tmp_path / "x.json"
    files.write_text(target, "old")
    command = [sys.executable, "-c", SLOW, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as writer:
        assert writer.stdout.readline() == b"half\n"
        files.drop_drafts(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2  # it lives, so its draft is left alone
        writer.kill()
        writer.wait()
    assert target.read_text() == "old"
    files.drop_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_text_is_written_as_it_is(tmp_path):
    files.write_text(tmp_path / "x", "a\r\nü\n")
    assert (tmp_path / "x").read_bytes() == b"a\r\n\xc3\xbc\n"


def test_only_files_of_the_names_given_are_deleted_and_none_behind_a_link(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    for name in ("a.json", ".host~123~a.json", ".a.json", "b.json", ".b~a.json"):
        (folder / name).write_text(name)
    (folder / "a-1.json").mkdir()
    assert files.foreign(folder, ["a*.json"]) == [".a.json", ".b~a.json", "a-1.json", "b.json"]
    files.remove_folder(folder, ["a*.json"])
    assert sorted(path.name for path in folder.iterdir()) == [".a.json", ".b~a.json", "a-1.json", "b.json"]
    link = tmp_path / "link"
    link.symlink_to(folder)
    files.remove_folder(link, ["*"])
    assert len(list(folder.iterdir())) == 4


def test_the_draft_of_a_killed_process_is_no_file_that_a_step_reads(tmp_path):
    for name in ("x.json", ".host~123~x.json"):
        (tmp_path / name).write_text("{}")
    assert pipeline._files(tmp_path, "*.json") == [tmp_path / "x.json"]
