"""Photographs the page for docs/pictures: desktop and phone, dark and light, idle and under load.

Not a measurement. Needs Chromium and `pip install playwright`; serves the default model by itself:

    python -m benchmarks page_pictures
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.browser import browser, opened
from tests.e2e.test_serve import base_url, started
from tests.e2e.test_xray_browser import replaying

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
DESKTOP, PHONE = (1440, 900), (390, 844)
QUESTION = "Explain in three short points why the sky is blue."


def main() -> None:
    """Write page-{desktop,phone}-{dark,light}.png, page-{idle,phone-xray,replay}.png."""
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        recording = Path(folder) / "run.rec"
        _photograph(chromium, recording)
        photograph_replay(chromium, recording)


def photograph_replay(chromium: Browser, recording: Path) -> None:
    """In the midst of it, with a request's time line."""
    size = {"width": DESKTOP[0], "height": 1150}
    with (
        replaying(recording) as url,
        opened(chromium, url, viewport=size, color_scheme="dark") as page,
    ):
        page.wait_for_selector("#position:enabled")
        page.evaluate(
            "() => { const slider = document.querySelector('#position');"
            " slider.value = slider.max * 0.6; slider.dispatchEvent(new Event('input')); }"
        )
        page.locator("#lanes li[data-phase=running]").nth(3).click()
        page.wait_for_selector("#request-events li")
        page.evaluate("document.querySelector('#xray').scrollTop = 0")
        _save(page, "page-replay")


def _photograph(chromium: Browser, recording: Path) -> None:
    settings = ("--max-num-seqs", "16", "--record", str(recording))
    with started("smollm2-135m", *settings) as (curl, _):
        url = base_url(curl)
        for name, (width, height) in (("desktop", DESKTOP), ("phone", PHONE)):
            for scheme in ("dark", "light"):
                size = {"width": width, "height": height}
                with opened(chromium, url, viewport=size, color_scheme=scheme) as page:
                    if (name, scheme) == ("desktop", "light"):
                        _save(page, "page-idle")
                    _fill(page)
                    _save(page, f"page-{name}-{scheme}")
                    if name == "phone" and scheme == "dark":
                        page.click("#tab-xray")
                        page.wait_for_timeout(500)
                        _save(page, "page-phone-xray")


def _fill(page: Page) -> None:
    """A finished answer, seen token by token, and a load in the midst of its work."""
    page.click("summary")
    page.fill("#temperature", "0.7")
    page.fill("#seed", "4")
    page.fill("#max_tokens", "120")
    page.check("#logprobs")
    page.click("summary")
    page.fill("#input", QUESTION)
    page.press("#input", "Enter")
    page.wait_for_selector(".assistant .stats", timeout=60_000)
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.locator(".token").nth(12).focus()
    page.evaluate("document.querySelector('#messages').scrollTop = 0")
    page.evaluate("document.querySelector('[data-clients=\"32\"]').click()")
    page.wait_for_timeout(6000)


def _save(page: Page, name: str) -> None:
    page.screenshot(path=FOLDER / f"{name}.png")
