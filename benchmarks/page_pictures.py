"""Photographs the page for docs/pictures: desktop and phone, dark and light, idle and under load.

Not a measurement. Needs Chromium and `pip install playwright`; serves the default model by itself:

    python -m benchmarks page_pictures
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.browser import ask, browser, opened, set_up
from tests.e2e.serving import base_url, started

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
DESKTOP, PHONE = {"width": 1440, "height": 1050}, {"width": 390, "height": 844}
QUESTION = "Explain in three short points why the sky is blue."
LOAD = "button.load[data-clients='128']"
MIN_RUNNING = 8  # of the load, while a picture is taken


def main() -> None:
    """Write page-{desktop,phone}-{dark,light}, each also -idle, -compare and -phone-xray."""
    from playwright.sync_api import expect

    with started("smollm2-135m", "--max-num-seqs", "16") as (curl, _), browser() as chromium:
        url = base_url(curl)
        for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
            for scheme in ("dark", "light"):
                with opened(chromium, url, viewport=size, color_scheme=scheme) as page:
                    page.wait_for_selector("#model option", state="attached")
                    expect(page.locator("#n-blocks")).to_have_text(re.compile(r"\d"))
                    _save(page, f"page-{name}-{scheme}-idle")
                    _look_at_tokens(page)
                    _save_under_load(page, f"page-{name}-{scheme}")
                    if (name, scheme) == ("phone", "dark"):
                        page.click("#tab-xray")
                        _save_under_load(page, "page-phone-xray")
        with opened(chromium, url, viewport=DESKTOP, color_scheme="light") as page:
            _compare(page)
            _save(page, "page-compare")


def _look_at_tokens(page: Page) -> None:
    """An answer, at the token that was least to be expected."""
    set_up(page, temperature="0.7", seed="4", max_tokens="120", logprobs="on")
    ask(page, QUESTION)
    page.get_by_role("button", name="Tokens", exact=True).click()
    labels = page.locator(".token").evaluate_all("nodes => nodes.map(node => node.ariaLabel)")
    chances = [float(label.rsplit(", ")[-1].removesuffix(" %")) for label in labels]
    page.locator(".token").nth(chances.index(min(chances))).focus()
    page.locator(".alternatives").scroll_into_view_if_needed()


def _compare(page: Page) -> None:
    set_up(page, temperature="0", max_tokens="60")
    page.click("#compare")
    set_up(page, "b", temperature="0.8", top_p="0.9", seed="2")
    ask(page, "Give me three tips for a good garden, as a list.")
    page.click("#settings > summary")
    page.evaluate("document.querySelector('#messages').scrollTop = 1e6")


def _save_under_load(page: Page, name: str) -> None:
    """Save it while the load runs, which is begun again where it has ended meanwhile.

    Raises:
        RuntimeError: no load lasts long enough to be seen.
    """
    from playwright.sync_api import expect

    running = page.locator("#n-running")
    for _ in range(5):
        page.evaluate(f'document.querySelector("{LOAD}").click()')  # a phone may not show it
        expect(running).to_have_text(re.compile(r"^([89]|\d\d)$"))  # MIN_RUNNING
        page.wait_for_timeout(2000)  # so that there are lanes and steps to be seen
        _save(page, name)
        if int(running.text_content() or 0) >= MIN_RUNNING:
            return
        page.wait_for_selector("#end-load", state="hidden")
    raise RuntimeError(f"{name}: the load ended before it could be seen")


def _save(page: Page, name: str) -> None:
    page.screenshot(path=FOLDER / f"{name}.png")
