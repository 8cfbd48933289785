"""Take the picture of the viewer in the README, of the demo's gallery: python tests/viewer/picture.py

It needs a Chromium; the picture is of the first clip of the gallery whose title matches.
"""

import argparse
import re
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parents[2] / "figures" / "demo"


def take(title: str, browser: str) -> Path:
    """Open the clip of this title in the gallery by its point, move to its middle, and keep the picture."""
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": 1240, "height": 900}, color_scheme="light"
        )
        page.goto((FOLDER / "gallery.html").as_uri())
        page.locator("figure.scatter circle").filter(has_text=re.compile(title)).first.dispatch_event("click")
        heading = page.get_by_role("heading", name=re.compile(title)).first
        heading.wait_for()
        clip = page.locator("section").filter(has=heading).first
        page.wait_for_timeout(1000)
        clip.get_by_role("button", name=re.compile("play", re.IGNORECASE)).first.focus()
        for _ in range(14):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        path = FOLDER / "viewer.png"
        clip.screenshot(path=path)
        return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--title", default="Moving something (closer to|away from) something")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    given = parser.parse_args()
    print(take(given.title, given.browser))
