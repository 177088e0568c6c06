"""Photographs the page for docs/pictures: desktop and phone, dark and light, idle and under load.

Not a measurement. Needs Chromium and `pip install playwright`; serves the default model by itself:

    python -m benchmarks page_pictures
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.browser import browser, opened
from tests.e2e.test_serve import base_url, started

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
DESKTOP, PHONE = (1440, 900), (390, 844)
QUESTION = "Explain in three short points why the sky is blue."


def main() -> None:
    """Write page-{desktop,phone}-{dark,light}.png, and page-idle.png of a fresh page."""
    with started("smollm2-135m", "--max-num-seqs", "16") as (curl, _), browser() as chromium:
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
