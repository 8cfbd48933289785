"""Take the picture of the viewer in the README, of the demo's gallery: python tests/viewer/picture.py

It needs a Chromium; what is in the picture is the clip of the gallery whose title begins with the words given.
"""

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parents[2] / "figures" / "demo"


def take(title: str, browser: str) -> Path:
    """Open the clip of this title in the gallery, move to its middle, and keep the picture."""
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": 1240, "height": 900}, color_scheme="light"
        )
        page.goto((FOLDER / "gallery.html").as_uri())
        clip = page.locator("section, article").filter(has_text=title).first
        clip.scroll_into_view_if_needed()
        page.wait_for_timeout(1500)
        clip.click(position={"x": 200, "y": 200})
        for _ in range(14):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        path = FOLDER / "viewer.png"
        clip.screenshot(path=path)
        return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--title", default="Moving something closer to something")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    given = parser.parse_args()
    print(take(given.title, given.browser))
