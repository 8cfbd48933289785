"""The viewer in a notebook: an anywidget of the same module that the files carry."""

import base64
from os import PathLike
from pathlib import Path

import anywidget
import traitlets

from tcar.viewer import page, still
from tcar.viewer.contents import Contents
from tcar.viewer.packing import pack


class Viewer(anywidget.AnyWidget):
    """Contents to play and to ask in JupyterLab.

    `frame` and `theme` ("auto", "light", "dark") follow what is done in the browser, and can be set. Where a notebook
    is shown without a kernel, a picture of the contents stands in its place.
    """

    _esm = page.HERE / "viewer.js"
    _css = page.HERE / "viewer.css"
    contents = traitlets.Dict().tag(sync=True)
    frame = traitlets.Int(0, min=0).tag(sync=True)
    theme = traitlets.Enum(("auto", "light", "dark"), "auto").tag(sync=True)

    def __init__(self, contents: Contents, **state):
        super().__init__(contents=pack(contents), **state)
        self._shown = contents

    def to_html(self, path: str | PathLike) -> Path:
        """Write one file that shows the same, offline too; see `tcar.viewer.to_html`."""
        return page.to_html(self._shown, path)

    def _repr_mimebundle_(self, **asked):
        """The widget, and a picture of it for whoever shows no widgets."""
        data, metadata = super()._repr_mimebundle_(**asked)
        picture = base64.b64encode(still.draw(self._shown)).decode()
        return data | {"image/png": picture}, metadata
