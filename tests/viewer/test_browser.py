"""The files in a browser, from the file system and without a network: what is promised of them is done by hand here."""

from pathlib import Path

import pytest
import shown

from tcar.viewer import Contents, ShownClip, gallery, to_html

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not there")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium with temporary files of its own: those of the process may be another test's, and gone."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", str(tmp_path_factory.mktemp("browser")))
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            yield browser
            browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip with its twin, and a gallery of 64."""
    folder = tmp_path_factory.mktemp("pages")
    to_html(shown.demo(), folder / "pair.html")
    bare = [ShownClip(clip.name, clip.frames, clip.label, roles=clip.roles) for clip in shown.demo().clips]
    for name, clips in {"unasked": bare, "frames": [ShownClip("frames", bare[0].frames)]}.items():
        to_html(Contents("Clips alone", tuple(clips), (), {}, {}, "", shown.FOOTER), folder / f"{name}.html")
    many = [shown.small(number, title=f"Clip {number} {shown.MARK}") for number in range(64)]
    gallery(many, folder / "gallery.html")
    return folder


@pytest.fixture
def visit(browser, folder):
    """Open a page offline; whatever it says on the console or asks of a network fails the test."""
    contexts, wrong = [], []

    def visit(name, width=1240, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda told: wrong.append(f"console: {told.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(LOCAL) else None)
        page.goto((folder / name).as_uri())
        page.wait_for_selector("html[data-ready]")
        page.wait_for_selector(".tcar-viewer[data-ready]")
        return page

    yield visit
    for page in (page for context in contexts for page in context.pages):
        assert not page.evaluate("document.body.dataset.broken")
    for context in contexts:
        context.close()
    assert not wrong


LOCAL = ("file:", "data:", "blob:")


def frame(page):
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return int(page.locator(".tcar-viewer").first.get_attribute("data-frame"))


def choose(page, label, value):
    page.locator(f"label:has(> span:text-is('{label}')) select").select_option(value)
    frame(page)


def pixels(page, clip=0):
    """The picture of a clip as text, to tell whether it has changed."""
    frame(page)
    return page.locator(".screen canvas").nth(clip).evaluate("(canvas) => canvas.toDataURL()")


def test_play_and_keys(visit):
    page = visit("pair.html", height=500)
    assert frame(page) == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert frame(page) == 1
    page.keyboard.press("End")
    assert frame(page) == 39
    page.keyboard.press("ArrowRight")
    assert frame(page) == 39
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    page.get_by_label("Pause").wait_for()
    page.wait_for_selector(".tcar-viewer:not([data-frame='0'])")
    page.keyboard.press(" ")
    page.get_by_label("Play", exact=True).wait_for()
    at = frame(page)
    assert frame(page) == at and page.evaluate("scrollY") == 0
    page.get_by_label("Play", exact=True).click()
    page.wait_for_selector(f".tcar-viewer:not([data-frame='{at}'])")


def test_scrubbing_moves_both_clips_in_step(visit):
    page = visit("pair.html")
    before = [pixels(page, clip) for clip in (0, 1)]
    axis = page.get_by_role("slider", name="Time")
    box = axis.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5125, box["y"] + 20)
    page.mouse.up()
    assert frame(page) == 20 and axis.get_attribute("aria-valuenow") == "21"
    assert "frame 21 of 40" in page.locator(".where").inner_text()
    assert all(pixels(page, clip) != before[clip] for clip in (0, 1))


def test_swapping_shows_the_answers_of_what_the_model_then_reads(visit):
    page = visit("pair.html")
    def numbers():
        frame(page)
        return page.locator(".row .number").all_inner_texts()
    def told(swap):
        return [f"{probability:.2f}" for _, probability in shown.ANSWERS[swap]]
    assert numbers() == told("neither")
    page.get_by_role("button", name="Swap motion").click()
    assert numbers() == told("motion")
    assert page.locator(".source").inner_text() == "Semantic from clip, motion from twin."
    assert page.locator("figure").nth(1).locator(".dot").all_inner_texts() == ["motion"]
    assert page.locator(".row.best .name").inner_text().startswith(shown.PULL)
    page.keyboard.press("1")
    assert numbers() == told("both")
    page.keyboard.press("m")
    assert numbers() == told("semantic")
    page.keyboard.press("s")
    assert numbers() == told("neither")


def test_where_no_model_was_asked_clips_play_without_answers(visit):
    page = visit("unasked.html")
    assert page.locator(".answers").count() == 0 and page.locator("figure").count() == 2
    assert not page.locator("label:has(> span:text-is('Look at'))").is_visible()
    before = pixels(page)
    for key in ("s", "1", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert frame(page) == 2 and pixels(page) != before
    before = pixels(page)
    page.get_by_role("button", name="hand").click()
    assert pixels(page) != before
    page.locator(".screen canvas").first.click()
    assert frame(page) == 2
    assert not visit("frames.html").locator(".panel").is_visible()  # nothing to choose


def test_what_failed_its_test_is_stamped(visit):
    page = visit("pair.html")
    options = page.locator("label:has(> span:text-is('Look at')) option").all_inner_texts()
    assert options == [
        "the frames alone", "occlusion (passed)", "rollout (not tested)", "saliency (not of the model)", "attention",
    ]  # fmt: skip
    assert not page.locator(".stamp").first.is_visible()
    plain = pixels(page)
    choose(page, "Look at", "map:saliency")
    assert page.locator(".stamp:visible").all_inner_texts() == ["not of the model"] * 2
    assert pixels(page) != plain
    choose(page, "Look at", "map:rollout")
    assert not page.locator(".stamp").first.is_visible()
    assert "Not tested." in page.locator(".note").inner_text()


def test_the_scale_has_the_numbers_of_the_map(visit):
    page = visit("pair.html")
    largest = max(abs(one.values).max() for clip in shown.demo().clips for one in clip.maps[:1])
    low, middle, high = page.locator(".ends span").all_inner_texts()
    assert middle == "0" and low[1:] == high[1:] == f"{largest:.2g}" and low[0] == "−"


def test_a_click_shows_what_a_place_may_read_and_reads(visit):
    page = visit("pair.html")
    choose(page, "Look at", "attention")
    choose(page, "Direction", "0")
    before = pixels(page)
    box = page.locator(".screen canvas").first.bounding_box()
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.1 * box["height"])
    assert pixels(page) != before
    told = page.locator(".told").inner_text()
    assert "The semantic token of moment 1, row 1, column 3 may read 2 of 32 motion tokens" in told
    token = shown.demo().clips[0].attention["block0.semantic_from_motion"].mean(axis=0)[2].max()
    assert float(told.rstrip(".").split()[-1]) == pytest.approx(token, abs=0.02)
    page.keyboard.press("Shift+ArrowDown")
    frame(page)
    assert "row 2, column 3" in page.locator(".told").inner_text()
    assert frame(page) == 0
    picked = pixels(page)
    choose(page, "Head", "2")
    assert pixels(page) != picked
    page.keyboard.press("Escape")
    frame(page)
    assert "The mean over all semantic tokens" in page.locator(".told").inner_text()


def test_a_click_without_attention_chosen_chooses_it(visit):
    page = visit("pair.html")
    page.locator(".screen canvas").nth(1).click()
    frame(page)
    assert "may read 2 of 32" in page.locator(".told").inner_text()
    choose(page, "Block", "self0")
    assert "What the readout reads." in page.locator(".told").inner_text()
    page.locator(".screen canvas").first.click()
    frame(page)
    assert "may read 64 of 64 semantic tokens" in page.locator(".told").inner_text()


def test_outlines_can_be_hidden(visit):
    page = visit("pair.html")
    page.keyboard.press("End")
    before = pixels(page)
    button = page.get_by_role("button", name="hand")
    button.click()
    assert button.get_attribute("aria-pressed") == "false" and pixels(page) != before


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_theme(visit, scheme, dark):
    page = visit("pair.html", scheme=scheme)
    def is_dark():
        frame(page)
        shade = page.locator(".tcar-viewer").evaluate("(one) => getComputedStyle(one).backgroundColor")
        return int(shade.removeprefix("rgb(").split(",")[0]) < 100
    assert is_dark() == dark
    page.get_by_label("Theme: auto").click()
    assert not is_dark()
    page.get_by_label("Theme: light").click()
    assert is_dark()
    page.get_by_label("Theme: dark").click()
    assert is_dark() == dark


def test_a_narrow_window_needs_no_scrolling_sideways(visit):
    for name in ("pair.html", "gallery.html"):
        assert visit(name, width=400).evaluate("document.documentElement.scrollWidth") <= 400


def test_a_gallery_draws_what_is_scrolled_to(visit):
    page = visit("gallery.html")
    def drawn():
        return page.locator("article[data-drawn]").evaluate_all("(all) => all.map((one) => one.id)")
    first = drawn()
    assert first and len(first) < 4 and "clip-0" in first
    page.locator("circle").nth(40).click()
    page.wait_for_selector("#clip-40 .tcar-viewer[data-ready]")
    assert "Clip 40" in page.locator("#clip-40 h2").inner_text()
    assert frame(page) == 0 and abs(page.locator("#clip-40").evaluate("(one) => one.getBoundingClientRect().top")) < 100
    assert len(drawn()) < 12
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#clip-40 .tcar-viewer[data-frame='1']")


def test_filters_of_a_gallery(visit):
    page = visit("gallery.html")
    assert page.locator(".count").inner_text() == "64 of 64 clips, 16 answered wrong"
    page.locator("[data-filter=answer]").select_option("=wrong")
    assert page.locator(".count").inner_text() == "16 of 64 clips, 16 answered wrong"
    page.locator("[data-filter=group]").select_option("=motion")
    wanted = [number for number in range(64) if number % 3 == 0 and number % 4 == 0]
    shown_now = page.locator("article:not([hidden])").evaluate_all("(all) => all.map((one) => one.id)")
    assert shown_now == [f"clip-{number}" for number in wanted]
    assert page.locator("circle:not(.away)").count() == len(wanted)
    page.locator("[data-filter=group]").select_option("all")
    page.locator("[data-filter=methods]").select_option("=failed")
    assert page.locator("article:not([hidden])").count() == sum(n % 4 == 0 and n % 3 == 2 for n in range(64))


def test_text_of_contents_is_never_markup(visit):
    page = visit("gallery.html")
    assert shown.MARK in page.locator("h2").first.inner_text()
    assert page.locator("img").count() == 0
