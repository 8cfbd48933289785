"""Files that show contents in any browser, without a notebook, a server or a network."""

import html
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from tcar.ground import files
from tcar.viewer.contents import Contents, ViewerError
from tcar.viewer.packing import as_json, deflated, pack

HERE = Path(__file__).parent
# Nothing but what lies in the file itself: a script that asked for an address would be refused.
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
PAGE = """<!doctype html>
<html lang="en" class="tcar-page">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
</head>
<body>
<main id="view">This page plays clips: it needs JavaScript, and a browser of 2024 or later.</main>
{data}
<script type="module">
// Styles and module lie deflated in this page, as each file has them; they are tcar/viewer/*.css and *.js.
for (const [tag, id] of [["style", "styles"], ["script", "module"]]) {{
const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
const made = document.createElement(tag);
if (tag === "script") made.type = "module";
const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
made.textContent = await new Response(inflated).text();
document.head.append(made);
}}
</script>
</body>
</html>
"""


def to_html(contents: Contents, path: str | PathLike) -> Path:
    """Write one file that shows the contents, offline too, and return its path.

    Raises ViewerError for a path that cannot be written.
    """
    return write_page(contents.title, {"contents": as_json(pack(contents))}, ("viewer", "plain"), path)


def gallery(contents: Sequence[Contents], path: str | PathLike, title: str = "Clips and answers") -> Path:
    """Write one file of many contents, with filters and a scatter of their points, and return its path.

    Each clip is drawn when it is scrolled to. Raises ViewerError for no contents and for a path that cannot be written.
    """
    if not contents:
        raise ViewerError("a gallery needs at least one study or contents; got none")
    data = {"index": as_json({"title": title, "entries": [_entry(one) for one in contents]})}
    for number, one in enumerate(contents):
        data[f"contents-{number}"] = as_json(pack(one))
    return write_page(title, data, ("viewer", "plain", "gallery"), path)


def write_page(title: str, data: dict[str, str], modules: Sequence[str], path: str | PathLike) -> Path:
    """Write the page of some JSON texts, by the id of their element, and the modules of this folder."""
    boot = "showGallery();" if "gallery" in modules else "showPage();"
    module = "\n".join([(HERE / f"{name}.js").read_text(encoding="utf-8") for name in modules] + [boot])
    code = {"styles": (HERE / "viewer.css").read_text(encoding="utf-8"), "module": module}
    lying = [f'<script type="text/plain" id="{name}">{deflated(text.encode())}</script>' for name, text in code.items()]
    lying += [f'<script type="application/json" id="{name}">{text}</script>' for name, text in data.items()]
    page = PAGE.format(policy=POLICY, title=html.escape(title), data="\n".join(lying))
    try:
        files.write_text(Path(path), page)
    except OSError as error:
        raise ViewerError(
            f"{path} cannot be written: {error.strerror or error}; give the path of a file in a folder that exists "
            "and is yours"
        ) from error
    return Path(path)


def _entry(contents: Contents) -> dict:
    """What the gallery knows of contents before they are drawn."""
    passed = {shown.passed for clip in contents.clips for shown in clip.maps}
    verdict = "failed" if False in passed else "passed" if True in passed else "untested"
    return {
        "title": contents.title, "group": contents.group, "wrong": contents.wrong, "target": contents.target,
        "point": None if contents.point is None else [float(axis) for axis in contents.point], "methods": verdict,
    }  # fmt: skip
