"""The page as people meet it: in a real browser."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pellucid.config import EngineConfig
from pellucid.engine.client import InProcessClient
from pellucid.engine.core import EngineCore
from pellucid.runner.base import Chunk
from pellucid.runner.fake import FakeRunner
from tests.e2e.browser import CHROMIUM, browser, opened
from tests.e2e.test_serve import base_url, serving
from tests.frontend.tiny import EOS, VOCAB_SIZE, tiny_text
from tests.server.live import Live, eventually, live

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")

KEY = "sk-a-long-enough-key"
HOSTILE = (
    "<script>document.title='owned'</script> **bold** <b>not</b>\n\n"
    "<img src=x onerror=\"document.title='owned'\">\n\n"
    "# head <i>x</i>\n- [click](javascript:document.title='owned')\n- ![x](https://evil.test/x.png)\n\n"
    "```html\n<script>document.title='owned'</script>\n```\n"
    "`<img src=x onerror=alert(1)>`"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    with live(runner={"step_seconds": 0.02, "num_blocks": 512}, max_num_seqs=6) as running:
        yield running


def say(page: Page, text: str) -> None:
    page.fill("#input", text)
    page.press("#input", "Enter")


def set_up(page: Page, **settings: str) -> None:
    page.click("summary")
    for name, value in settings.items():
        page.fill(f"#{name}", value)


def answers(page: Page) -> list[str]:
    return page.locator("#messages > .assistant .content").all_inner_texts()


def test_a_chat_streams_stops_and_goes_on(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        set_up(page, system="Be brief.", seed="1")
        say(page, "Hello")
        expect(page.locator(".assistant .content")).to_have_text(re.compile(".{9}"))
        assert slow.metric("vllm:num_requests_running") == 1  # it is shown before it ends
        page.click("#stop")
        assert eventually(slow.is_idle)
        stats = page.inner_text(".assistant .stats")
        assert stats.startswith("first token after")
        assert "stopped" in stats
        stopped = answers(page)[0]

        page.fill("#max_tokens", "12")
        page.click("text=Again")
        page.wait_for_selector(".stats:has-text('12 tokens')")
        assert len(answers(page)) == 1
        say(page, "And then?")
        expect(page.locator(".stats")).to_have_count(2)

        page.reload()  # the conversation is the browser's
        assert len(answers(page)) == 2
        page.locator("text=Edit").first.click()
        assert page.input_value("#input") == "Hello"
        say(page, "Hello")
        page.wait_for_selector(".assistant .stats")
        assert len(answers(page)) == 1
        assert stopped.split()[0] == answers(page)[0].split()[0]  # the same seed


def test_code_asks_for_the_same(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        set_up(page, system="It's short.", temperature="0.5", top_k="7", max_tokens="4")
        page.fill("#input", "Hi 'there'")
        page.click("#code")
        curl = page.inner_text("#code-text")
        body = json.loads(curl.split("-d '")[1].removesuffix("'").replace("'\\''", "'"))
        assert body["messages"][0] == {"role": "system", "content": "It's short."}
        assert body["messages"][1]["content"] == "Hi 'there'"
        assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.5, 7, 4)
        page.click("#as-python")
        compile(page.inner_text("#code-text"), "shown", "exec")


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
        expect(page.locator("#end-load")).to_be_hidden(timeout=15_000)
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


class Scripted(FakeRunner):
    """Says `HOSTILE`, whatever it is asked."""

    script = tiny_text().tokenizer.encode(HOSTILE)

    def _compute(self, chunk: Chunk, errors: dict[str, str]) -> list[int]:
        tokens = super()._compute(chunk, errors)
        if tokens:
            row = self._rows[chunk.request_id]
            said = len(row.token_ids) - row.num_prompt_tokens - 1
            tokens[0] = row.token_ids[-1] = [*self.script, EOS][min(said, len(self.script))]
        return tokens


def test_hostile_output_stays_text(chromium: Browser) -> None:
    assert tiny_text().tokenizer.decode(Scripted.script) == HOSTILE
    config = EngineConfig.of(runner="fake")
    runner = Scripted(vocab_size=VOCAB_SIZE, eos_token_ids=(EOS,), max_model_len=4096)
    client = InProcessClient(lambda: EngineCore(runner, config.cache, config.scheduler))
    with live(client=client) as site, opened(chromium, site.url) as page:
        page.click("summary")
        page.check("#logprobs")
        say(page, "x")
        page.wait_for_selector(".assistant .stats")
        content = page.locator(".assistant .content")
        seen = content.inner_text()
        for literal in ("<script>document.title='owned'</script>", "<b>not</b>", "<i>x</i>"):
            assert literal in seen
        assert "[click](javascript:document.title='owned')" in seen
        assert content.locator("strong").inner_text() == "bold"
        assert content.locator("pre code").count() == 1
        assert content.locator("script, img, a, b, i, iframe").count() == 0
        page.get_by_role("button", name="Tokens", exact=True).click()
        assert content.locator(".tokens").inner_text().removesuffix("<eos>") == HOSTILE
        assert content.locator("script, img, a").count() == 0
        page.reload()
        assert page.locator(".assistant").locator("script, img, a").count() == 0
        assert page.title() == "pellucid"


def test_without_the_key_nothing_works(chromium: Browser) -> None:
    with (
        live(gateway={"api_key": [KEY]}) as site,
        opened(chromium, site.url) as page,
    ):
        page.wait_for_selector("#notice:has-text('API key is required')")
        assert page.locator("#model option").count() == 0
        say(page, "Hello")
        page.wait_for_selector(".assistant .error:has-text('API key is required')")
        page.click("text=8 clients")
        page.wait_for_selector("#engine:has-text('API key is required')")
        assert page.locator("#lanes li").count() == 0

        page.fill("#key", KEY)
        page.click("text=Use")
        page.wait_for_selector("#engine:has-text('block')")
        set_up(page, max_tokens="3")
        say(page, "Hello")
        page.wait_for_selector(".assistant .stats:has-text('3 tokens')")
        assert len(answers(page)) == 1  # what failed before is not part of the conversation
        page.click("#code")
        assert KEY not in page.inner_text("#code-text")
        kept = page.evaluate("JSON.stringify([localStorage, document.cookie])")
        assert KEY not in kept


@pytest.mark.model
def test_shown_probabilities_are_the_apis(chromium: Browser, smollm2_path: Path) -> None:
    asked = {"temperature": 0, "max_tokens": 10, "logprobs": True, "top_logprobs": 5}
    with serving(smollm2_path) as (curl, _), opened(chromium, base_url(curl)) as page:
        set_up(page, temperature="0", max_tokens="10")
        page.check("#logprobs")
        say(page, "Name a colour.")
        page.wait_for_selector(".assistant .stats")
        page.get_by_role("button", name="Tokens", exact=True).click()
        body = asked | {"messages": [{"role": "user", "content": "Name a colour."}]}
        answer = httpx.post(f"{base_url(curl)}/v1/chat/completions", json=body, timeout=60).json()
        entries = answer["choices"][0]["logprobs"]["content"]
        tokens = page.locator(".token")
        assert [token.text_content() for token in tokens.all()] == [e["token"] for e in entries]
        for token, entry in zip(tokens.all(), entries, strict=True):
            token.focus()
            shown = [row.split("\t")[1] for row in page.inner_text(".alternatives").splitlines()]
            expected = [f"{100 * math.exp(o['logprob']):.2f} %" for o in entry["top_logprobs"]]
            assert shown == expected
