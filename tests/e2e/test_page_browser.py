"""The X-ray as people meet it, and the page on a phone: in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser import opened
from tests.server.live import Live, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect


def test_clients_become_lanes_and_blocks_are_those_of_metrics(
    chromium: Browser, slow: Live
) -> None:
    with opened(chromium, slow.url) as page:
        expect(page.locator("#engine")).to_contain_text("block")
        page.click("text=8 clients")
        expect(page.locator("#lanes li")).to_have_count(8)
        expect(page.locator("#lanes li[data-phase=running]")).to_have_count(6)

        def agrees() -> bool:
            used = round(slow.metric("vllm:kv_cache_usage_perc") * 512)
            page.wait_for_timeout(150)
            return int(page.inner_text("#n-used")) == used > 0

        assert eventually(agrees)
        assert int(page.inner_text("#n-running")) == 6
        assert int(page.inner_text("#n-shared")) > 0
        expect(page.locator("#end-load")).to_be_hidden()
        expect(page.locator("#n-used")).to_have_text("0")
        cached = int(page.inner_text("#n-cached"))
        assert cached == slow.call(lambda: slow.llm._client._core.scheduler.kv.num_named)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone_shows_one_half_at_a_time(chromium: Browser, slow: Live, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme}
    with opened(chromium, slow.url, reduced_motion="reduce", **phone) as page:
        for shown, hidden in (("xray", "chat"), ("chat", "xray")):
            page.focus(f"#tab-{shown}")
            page.keyboard.press("Enter")
            expect(page.locator(f"#{shown}")).to_be_visible()
            expect(page.locator(f"#{hidden}")).to_be_hidden()
            assert page.evaluate("document.documentElement.scrollWidth") == 390
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 25)"
        assert dark == (scheme == "dark")
