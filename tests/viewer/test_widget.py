"""The widget carries the packed contents, the module, and a picture for whoever shows no widgets."""

import base64
import io

import pytest
import shown
import traitlets
from PIL import Image

from tcar.viewer import Viewer
from tcar.viewer.packing import pack
from tcar.viewer.still import chosen_map, draw


def test_the_widget_and_its_picture():
    contents = shown.small(1)
    viewer = Viewer(contents, theme="dark")
    assert viewer.contents == pack(contents) and viewer.theme == "dark"
    state = viewer.get_state()
    assert "export default" in state["_esm"] and ".tcar-viewer" in state["_css"]
    data, _ = viewer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.format == "PNG" and picture.width == 1100


def test_no_other_theme():
    with pytest.raises(traitlets.TraitError):
        Viewer(shown.small(0), theme="blue")


def test_to_html(tmp_path):
    viewer = Viewer(shown.small(0))
    assert viewer.to_html(tmp_path / "a.html").read_text().startswith("<!doctype html>")


def test_the_picture_shows_no_map_that_failed():
    chosen = [chosen_map(shown.small(number).clips[0]) for number in range(3)]
    assert [one and one.method for one in chosen] == ["occlusion", "rollout", None]
    assert draw(shown.small(2)).startswith(b"\x89PNG")


def test_a_picture_of_one_clip():
    contents = shown.small(0, clips=shown.small(0).clips[:1], answers={"neither": shown.ANSWERS["neither"]})
    assert draw(contents).startswith(b"\x89PNG")


def test_a_picture_where_no_model_was_asked():
    contents = shown.small(0, answers={}, target="")
    assert Viewer(contents).contents["answers"] == {} and draw(contents).startswith(b"\x89PNG")
