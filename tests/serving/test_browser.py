"""The page in a real browser: Chromium of a package, led by Playwright. Wants the extras `page` and `browser`."""

import io
import json
import secrets
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vidjax.data.video_writing import write_mp4
from vidjax.serving import uploads
from vidjax.serving.files import MASK, RUN
from vidjax.serving.jobs import TUNE

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

WIDTHS = {"desk": 1280, "phone": 390}
PATIENCE = 120_000  # milliseconds: machines differ


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, serving):
    """Opens the page as a new user who has logged in, in a window of some width."""
    opened = []

    def open_page(width):
        name = f"browser-{secrets.token_hex(4)}"
        token = serving.keys.add(name)
        context = browser.new_context(viewport={"width": width, "height": 844})
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{serving.url}/")
        page.get_by_label("username").fill(name)
        page.get_by_label("password").fill(token)
        page.keyboard.press("Enter")
        page.get_by_label("Prompt", exact=True).wait_for()
        return page

    yield open_page
    for context in opened:
        context.close()


@pytest.fixture
def working(serving):
    """The worker, at work."""
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [serving.worker.run_next() for _ in iter(lambda: stop.wait(0.05), True)])
    thread.start()
    yield
    stop.set()
    thread.join()


def middle_of(picture):
    """The colour in the middle of a PNG."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    return pixels[len(pixels) // 2, pixels.shape[1] // 2]


def give_file(panel, file):
    """Gives a file to the panel's first field, and waits until the server has it: the row of a file has its name as
    label. As one text the name stands there only while the file is sent."""
    panel.locator("input[type=file]").first.set_input_files(file)
    panel.get_by_label(file.name).wait_for()


def tab_to(page, found, most=80):
    """Moves the focus by the Tab key alone."""
    for _ in range(most):
        if found.evaluate("each => each === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the Tab key does not reach {found}")


def test_a_video_by_keyboard_alone_and_another_key_does_not_see_it(visit, serving, working, monkeypatch):
    seen, advance = threading.Event(), serving.jobs.advance  # the video goes on once the page has shown how far it is
    monkeypatch.setattr(serving.jobs, "advance", lambda *how: (advance(*how), seen.wait(PATIENCE / 1000))[0])
    one, other = visit(WIDTHS["desk"]), visit(WIDTHS["desk"])
    tab_to(one, one.get_by_label("Prompt", exact=True))
    one.keyboard.type("a fox in the browser")
    tab_to(one, one.get_by_role("button", name="Settings"))
    one.keyboard.press("Enter")
    tab_to(one, one.get_by_label("number input for Steps"))
    one.keyboard.press("Control+A")
    one.keyboard.type("7")
    tab_to(one, one.get_by_role("button", name="Make", exact=True))
    one.keyboard.press("Enter")
    try:
        one.get_by_text("step 1 of 7").wait_for()
    finally:
        seen.set()
    one.get_by_text("completed, seed").wait_for()
    player = one.locator("video")
    one.wait_for_function("document.querySelector('video').readyState > 0")
    assert "a fox in the browser" in player.get_attribute("aria-label")

    tab_to(one, one.get_by_role("tab", name="Videos"))
    one.keyboard.press("Enter")
    choice = one.get_by_role("radio", name="a fox in the browser")
    choice.wait_for()
    tab_to(one, choice)
    one.keyboard.press("Space")
    one.locator("video[aria-label*='a fox in the browser']").last.wait_for()

    other.get_by_label("Prompt", exact=True).fill("a cat of another")
    other.get_by_role("button", name="Make", exact=True).click()
    other.get_by_text("completed, seed").wait_for()
    other.get_by_role("tab", name="Videos").click()
    other.get_by_role("radio", name="a cat of another").wait_for()
    assert other.get_by_role("radio").count() == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_no_tab_is_wider_than_the_window(visit, width):
    page = visit(WIDTHS[width])
    names = page.get_by_role("tab").all_inner_texts()
    assert names == ["Make", "Videos", "Edit", "Tune"]
    for name in names:
        page.get_by_role("tab", name=name).click()
        page.locator("[role=tabpanel]:visible").wait_for()
        page.wait_for_function("document.documentElement.scrollWidth === document.documentElement.clientWidth")


def test_a_mask_is_drawn_and_an_edit_stands_beside_its_clip(visit, working, tmp_path, monkeypatch):
    masks, keep = [], uploads.keep_input
    see = lambda folder, array, name: masks.extend([array] * (name == MASK)) or keep(folder, array, name)
    monkeypatch.setattr(uploads, "keep_input", see)
    write_mp4(tmp_path / "clip.mp4", np.full((2, 64, 64, 3), 90, np.uint8), 4.0)
    page = visit(WIDTHS["desk"])
    page.get_by_role("tab", name="Edit").click()
    panel = page.locator("[role=tabpanel]:visible")
    give_file(panel, tmp_path / "clip.mp4")
    canvas = panel.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box, until = canvas.bounding_box(), time.monotonic() + PATIENCE / 1000
    while np.abs(middle_of(canvas.screenshot()) - 90.0).max() > 20:  # it comes under the brush
        assert time.monotonic() < until
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    page.get_by_label("Prompts, one a line").fill("a cat\na dog")
    page.get_by_role("button", name="Edit", exact=True).click()
    page.locator("figcaption").filter(has_text="a dog: completed").wait_for()
    assert page.locator(".beside video").count() == 2
    assert len(masks) == 2 and 0 < masks[0].mean() < 0.9


def test_the_loss_of_a_tuning_is_drawn_while_it_runs(visit, serving, tmp_path):
    """The tuner is played: what a run of it writes is known to test_edits_and_tuning.py."""
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "picture.png")
    page = visit(WIDTHS["desk"])
    page.get_by_role("tab", name="Tune").click()
    panel = page.locator("[role=tabpanel]:visible")
    give_file(panel, tmp_path / "picture.png")
    panel.get_by_label("What they show").fill("a fox")
    panel.get_by_role("button", name="Tune", exact=True).click()
    panel.get_by_text("waits behind 0 others").wait_for()
    (job,) = serving.jobs.claim("tuner", kind=TUNE)
    entries = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2, 3)]
    file = serving.jobs.folder(job.id) / RUN / "tune" / "metrics.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{entry}\n" for entry in entries))
    assert serving.jobs.advance("tuner", [job.id], 3, 0)
    panel.get_by_text("step 3 of 4").wait_for()
    line = panel.locator(".mark-line path").get_attribute("d")
    heights = [float(point.split(",")[1]) for point in line.strip("M").split("L")]
    assert len(heights) == 3 and heights == sorted(heights)  # counted from the top: it falls
    panel.get_by_role("button", name="Stop").click()
    panel.get_by_text("cancelled").wait_for()
