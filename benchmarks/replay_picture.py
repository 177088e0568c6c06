"""Photographs a recording in the page for docs/pictures.

Not a measurement. Needs Chromium and `pip install playwright`; serves the default model by itself:

    python -m benchmarks replay_picture
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx
from tests.e2e.browser import browser, opened
from tests.e2e.serving import base_url, started
from tests.e2e.test_replay_browser import replaying

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "page-replay.png"
SIZE = {"width": 1440, "height": 1150}
CLIENTS = 128


def main() -> None:
    """Write page-replay.png."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "run.rec"
        settings = ("--max-num-seqs", "64", "--record", str(recording))
        with started("smollm2-135m", *settings) as (curl, _):
            url = f"{base_url(curl)}/xray/load"
            httpx.post(url, json={"clients": CLIENTS}, timeout=300).raise_for_status()
        photograph(recording)


def photograph(recording: Path) -> None:
    """In the midst of it, with a request's time line."""
    with (
        browser() as chromium,
        replaying(recording) as url,
        opened(chromium, url, viewport=SIZE, color_scheme="dark") as page,
    ):
        page.wait_for_selector("#position:enabled")
        page.evaluate(
            "() => { const slider = document.querySelector('#position');"
            " slider.value = slider.max * 0.6; slider.dispatchEvent(new Event('input')); }"
        )
        page.locator("#lanes li[data-phase=running]").nth(3).click()
        page.wait_for_selector("#request-events li")
        page.evaluate("document.querySelector('#xray').scrollTop = 0")
        page.screenshot(path=PICTURE)
