"""Files: their size, their policy, what they do with text that looks like markup, and paths that cannot be."""

import re

import pytest
import shown

from tcar.viewer import gallery, to_html
from tcar.viewer.contents import ViewerError


def test_a_clip_of_the_demo_is_small(tmp_path):
    demo = shown.demo()
    one = shown.demo(clips=demo.clips[:1], answers={"neither": shown.ANSWERS["neither"]})
    assert to_html(one, tmp_path / "one.html").stat().st_size < 100_000
    assert to_html(demo, tmp_path / "pair.html").stat().st_size < 200_000  # a clip and its twin


@pytest.mark.parametrize("blocks", [4, 8])
def test_a_clip_of_full_size_is_below_1_mb(tmp_path, blocks):
    assert to_html(shown.full_size(blocks), tmp_path / "full.html").stat().st_size < 1_000_000


def test_the_policy_and_no_address(tmp_path):
    text = to_html(shown.small(0), tmp_path / "a.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data: blob:;")
    assert not re.search(r"https?://", text) and not re.search(r'(src|href)="(?!data:)', text)
    assert '<html lang="en"' in text


def test_text_cannot_end_its_element(tmp_path):
    path = to_html(shown.small(0, title=shown.MARK, group=shown.MARK), tmp_path / "a.html")
    assert "<img" not in path.read_text()
    assert "<img" not in gallery([shown.small(0, title=shown.MARK)], tmp_path / "b.html", title=shown.MARK).read_text()


@pytest.mark.parametrize("write", [to_html, lambda contents, path: gallery([contents], path)])
@pytest.mark.parametrize("place", ["missing/a.html", "folder", "file/a.html"])
def test_a_path_that_cannot_be_written(tmp_path, write, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ViewerError, match="cannot be written") as told:
        write(shown.small(0), tmp_path / place)
    assert str(tmp_path / place) in str(told.value) and "\n" not in str(told.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_gallery_of_nothing(tmp_path):
    with pytest.raises(ViewerError, match="at least one"):
        gallery([], tmp_path / "a.html")
