"""A clip, what a model answers to it, and what explains the answer, to play and to ask: in a notebook, in a file, in a
gallery of files.

The viewer knows no model: it shows plain data (`Contents`), in JupyterLab as a widget and in a browser from one file
that asks the network for nothing.
"""

from tcar.viewer.contents import Contents, Footer, ShownClip, ShownMap
from tcar.viewer.page import gallery, to_html
from tcar.viewer.widget import Viewer

__all__ = ["Contents", "Footer", "ShownClip", "ShownMap", "Viewer", "gallery", "to_html"]
