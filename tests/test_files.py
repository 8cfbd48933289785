"""A file is there whole or not at all, whatever happens while it is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from tcar import files

SLOW = """
import sys, time
from pathlib import Path
from tcar import files
with files.drafted(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_an_error_while_writing_leaves_what_was_there_and_no_draft(tmp_path, unchecked):
    target = tmp_path / "x.json"
    files.write_text(target, "old")
    with pytest.raises(TypeError, match="int"):
        files.replace_file(target, b"half", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert target.read_text() == "old"


def test_a_killed_writer_leaves_the_old_file_and_its_draft_is_dropped_once_it_is_gone(tmp_path):
    target = tmp_path / "x.json"
    files.write_text(target, "old")
    command = [sys.executable, "-c", SLOW, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as writer:
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
