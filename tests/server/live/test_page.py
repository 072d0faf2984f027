"""The page in a real browser: frames change, another prompt follows, tricks switch, nothing overflows or complains."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.live.drawn import EXAMPLES, DrawnStudio
from tests.server.live.served import eventually, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with the package playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, and there is none")

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
RING, SQUARE, _ = EXAMPLES
# The red and blue pixels of the live screen, and a number that any visible change changes. Read from a small copy.
PIXELS = """canvas => {
    const copy = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
    const pen = copy.getContext("2d", { willReadFrequently: true });
    pen.drawImage(canvas, 0, 0, 64, 64);
    const data = pen.getImageData(0, 0, 64, 64).data;
    let red = 0, blue = 0, sum = 0;
    for (let i = 0; i < data.length; i += 4) {
        red += data[i] > 150 && data[i + 2] < 110;
        blue += data[i + 2] > 150 && data[i] < 110;
        sum = (sum * 31 + data[i]) % 1000003;
    }
    return { red, blue, sum };
}"""
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Any, at: str, expected: str = "nothing", **options: Any) -> Iterator[Any]:
    """A page of that server; whatever the browser complains of, but for what is expected, fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    page, complaints = context.new_page(), []
    page.set_default_timeout(10_000)
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://{at}/")
    yield page
    context.close()
    assert not [complaint for complaint in complaints if expected not in complaint]


def state(page: Any, name: str) -> None:
    page.wait_for_selector(f"#state[data-state={name}]")


def pixels(page: Any) -> dict[str, float]:
    return page.locator("#live-canvas").evaluate(PIXELS)


def moves(page: Any, seconds: float = 5.0) -> bool:
    before = pixels(page)["sum"]
    return eventually(lambda: pixels(page)["sum"] != before, seconds)


def figure(page: Any, name: str) -> str:
    return page.locator(".tile", has=page.locator(f"dt:text-is('{name}')")).locator(".value").inner_text()


def test_a_viewer_sees_video_steers_it_and_compares(browser: Any, tmp_path: Path) -> None:
    studio = DrawnStudio(pause=0.01)
    with served(studio) as at, opened(browser, at, color_scheme="light") as page:
        state(page, "live")
        assert page.locator("#model").inner_text() == "drawn shapes"
        assert page.get_by_role("img", name=f"Live video: {RING}").is_visible()
        assert moves(page)
        assert pixels(page)["red"] > 50 > pixels(page)["blue"]
        page.screenshot(path=tmp_path / "light.png", full_page=True)

        page.get_by_label("What shall it show?").fill(SQUARE)
        page.keyboard.press("Enter")
        page.get_by_role("img", name=f"Live video: {SQUARE}").wait_for()
        assert pixels(page)["blue"] > 50 > pixels(page)["red"]
        assert re.fullmatch(r"New prompt, after (\d+ ms|[\d.]+ s)", page.locator("#mark").inner_text())
        assert SQUARE in page.locator("#history-list").inner_text()
        assert "on the screen after" in page.get_by_role("status").inner_text()

        trick = page.get_by_role("switch", name="int8")
        assert trick.is_checked()
        trick.uncheck()
        assert eventually(lambda: not next(iter(studio.sessions)).tricks["int8"])
        assert eventually(lambda: figure(page, "Steps") == "2")

        page.get_by_role("switch", name="Teacher beside it").check()
        page.get_by_role("img", name=f"The teacher's video: {SQUARE}").wait_for()
        assert eventually(lambda: "50 steps" in page.locator("#teacher-caption").inner_text())

        assert 5 < float(figure(page, "Frames a second")) < 20
        assert figure(page, "Accuracy").startswith("95")
        assert page.evaluate(WIDER) <= 0
        assert page.locator("#problem").inner_text() == ""


def test_a_prompt_that_can_not_be_shown_is_told_and_the_video_goes_on(browser: Any) -> None:
    with served(DrawnStudio(has_teacher=False)) as at, opened(browser, at) as page:
        state(page, "live")
        page.get_by_label("What shall it show?").fill("a purple cow")
        page.get_by_role("button", name="Show", exact=True).click()
        assert eventually(lambda: "purple cow" in page.get_by_role("alert").inner_text())
        assert moves(page)
        teacher = page.get_by_role("switch", name="Teacher beside it")
        teacher.click()
        assert eventually(lambda: "has no teacher" in page.get_by_role("alert").inner_text())
        assert eventually(lambda: not teacher.is_checked())


def test_pause_holds_the_picture_and_play_goes_on(browser: Any) -> None:
    with served(DrawnStudio()) as at, opened(browser, at) as page:
        state(page, "live")
        page.get_by_role("button", name="Pause").click()
        state(page, "paused")
        assert not moves(page, seconds=0.6)
        page.get_by_role("button", name="Play").last.click()
        state(page, "live")
        assert moves(page)


def test_a_chunk_that_is_late_is_counted_and_waited_for(browser: Any) -> None:
    with served(DrawnStudio(stalls_at=24)) as at, opened(browser, at) as page:
        state(page, "live")
        hint = page.locator(".tile", has=page.locator("dt:text-is('Missed deadlines')")).locator(".hint")
        assert eventually(lambda: re.fullmatch(r"[1-9]\d* late here, 0 dropped", hint.inner_text()))
        assert moves(page)


def test_on_a_narrow_dark_screen_and_by_keyboard(browser: Any, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark", "has_touch": True}
    with served(DrawnStudio(pause=0.01)) as at, opened(browser, at, **phone) as page:
        state(page, "live")
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.textContent") == "Skip to the prompt"
        page.keyboard.press("Enter")
        page.get_by_label("What shall it show?").focus()
        page.keyboard.press("Tab")  # Show
        page.keyboard.press("Tab")  # the first example
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_role("img", name=f"Live video: {SQUARE}").wait_for()
        page.get_by_role("switch", name="Teacher beside it").check()
        assert eventually(lambda: "50 steps" in page.locator("#teacher-caption").inner_text())
        assert page.evaluate(WIDER) <= 0
        page.screenshot(path=tmp_path / "narrow.png", full_page=True)


def test_nothing_plays_by_itself_where_less_motion_is_wanted(browser: Any) -> None:
    studio = DrawnStudio()
    with served(studio) as at, opened(browser, at, reduced_motion="reduce") as page:
        state(page, "idle")
        assert studio.opened == 0
        page.locator("#begin").click()
        state(page, "live")
        assert moves(page)


def test_the_page_comes_back_when_the_connection_is_lost(browser: Any) -> None:
    with ExitStack() as first, ExitStack() as stack:
        at = first.enter_context(served(DrawnStudio()))
        page = stack.enter_context(opened(browser, at, expected="WebSocket connection to"))
        state(page, "live")
        page.get_by_role("switch", name="int8").uncheck()
        first.close()
        state(page, "trouble")
        assert eventually(lambda: page.locator("#state-text").inner_text().startswith("Reconnecting"))
        studio = DrawnStudio()
        stack.enter_context(served(studio, port=int(at.split(":")[1])))
        state(page, "live")
        assert moves(page)
        assert eventually(lambda: not next(iter(studio.sessions)).tricks["int8"])


def test_a_key_is_asked_for_and_remembered(browser: Any) -> None:
    def authorize(key: str | None) -> str | None:
        return None if key == "fs-good" else "This key is not known."

    with served(DrawnStudio(), authorize=authorize) as at, opened(browser, at) as page:
        page.get_by_label("This server asks for a key").fill("fs-good")
        page.get_by_role("button", name="Use it").click()
        state(page, "live")
        page.reload()
        state(page, "live")
        assert moves(page)
