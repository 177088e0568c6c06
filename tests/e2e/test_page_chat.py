"""The playground as people meet it: in a real browser."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.browser import answers, ask, kept, opened, requests, say, set_up, wait
from tests.e2e.serving import base_url, serving
from tests.frontend.tiny import LETTERS
from tests.server.live import Live, eventually, live
from tests.server.test_reasoning import CALL, THOUGHT, saying

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

KEY = "sk-a-long-enough-key"
TOOLS = '[{"type": "function", "function": {"name": "f"}}]'


def test_a_chat_streams_stops_and_goes_on(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        set_up(page, system="Be brief.", seed="1")
        say(page, "Hello")
        expect(page.locator(".assistant .content").last).to_have_text(re.compile(".{9}"))
        assert slow.metric("vllm:num_requests_running") == 1  # it is shown before it ends
        page.click("#stop")
        assert eventually(slow.is_idle)
        stats = page.inner_text(".assistant .stats")
        assert re.match(r"first token after \d+ ms · [\d.]+ tokens/s · \d+ tokens · stopped", stats)
        stopped = answers(page)[0]

        set_up(page, max_tokens="12")
        page.click("text=Again")
        page.wait_for_selector(".stats:has-text('12 tokens')")
        assert "cut off" in page.inner_text(".assistant .stats")
        assert len(answers(page)) == 1
        assert stopped[:9] == answers(page)[0][:9]  # the same seed


def test_again_and_edit_drop_what_followed(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        set_up(page, max_tokens="4")
        for text in ("one", "two", "three"):
            ask(page, text)
        page.click("text=Again >> nth=1")
        wait(page)
        assert page.locator(".user").all_inner_texts() == ["one\nEdit", "two\nEdit"]

        page.click("text=Edit >> nth=0")
        assert page.input_value("#input") == "one"
        page.press("#input", "Escape")  # thinks better of it
        assert (page.input_value("#input"), len(answers(page))) == ("", 2)
        page.click("text=Edit >> nth=1")
        with requests(page) as bodies:
            ask(page, "another two")
        assert [message["content"] for message in bodies[0]["messages"]][::2] == [
            "one",
            "another two",
        ]
        (conversation,) = kept(page)
        assert [turn["user"] for turn in conversation["turns"]] == ["one", "another two"]


def test_side_by_side(chromium: Browser) -> None:
    runner = {"step_seconds": 0.01, "answer_vocab": LETTERS}
    with (
        live(models=("one", "two"), runner=runner) as site,
        opened(chromium, site.url) as page,
    ):
        set_up(page, max_tokens="5")
        ask(page, "Alone")
        page.click("#compare")
        set_up(page, "b", model="two", max_tokens="7", system="Be wise.", seed="3")
        with requests(page) as bodies:
            ask(page, "Both")
            ask(page, "And?")
        stats = page.locator(".stats").all_inner_texts()[1:]
        for shown, count in zip(stats, (5, 7, 5, 7), strict=True):
            assert re.search(rf"first token after .* tokens/s · {count} tokens", shown)
        assert [body["model"] for body in bodies] == ["one", "two", "one", "two"]
        (conversation,) = kept(page)
        alone, both, _ = conversation["turns"]
        for body, column in zip(bodies[2:], (0, 1), strict=True):
            said = [message for message in body["messages"] if message["role"] != "system"]
            mine = [alone["answers"][0], both["answers"][column]]  # what it has said itself
            assert [message["content"] for message in said] == [
                "Alone", mine[0]["choices"][0]["content"],
                "Both", mine[1]["choices"][0]["content"], "And?",
            ]  # fmt: skip
        page.reload()
        assert page.get_attribute("#compare", "aria-pressed") == "true"
        assert page.locator(".assistant").count() == 5
        page.click("#code")
        page.click("#code-choices >> text=B")
        assert '"seed":3' in page.inner_text("#code-text")


def test_both_sides_are_asked_at_once_and_stop_together(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        page.click("#compare")
        say(page, "Hello")
        assert eventually(lambda: slow.metric("vllm:num_requests_running") == 2)
        page.press("#input", "Escape")
        assert eventually(slow.is_idle)
        wait(page)
        assert page.locator(".stats:has-text('stopped')").count() == 2


def test_a_conversation_goes_on_from_the_answer_that_was_picked(
    chromium: Browser, slow: Live
) -> None:
    with opened(chromium, slow.url) as page:
        set_up(page, n="3", max_tokens="4", logprobs="yes", top_logprobs="2")
        ask(page, "Hello")
        assert len(answers(page)) == 3
        page.click("text=Continue with this >> nth=2")
        with requests(page) as bodies:
            ask(page, "And?")
        choices = kept(page)[0]["turns"][0]["answers"][0]["choices"]
        assert bodies[0]["messages"][1]["content"] == choices[2]["content"]
        assert page.locator(".choice button:has-text('Tokens')").count() == 6


# ---- what an answer may be made of


def test_thoughts_and_calls_are_shown_apart_and_calls_can_be_answered(chromium: Browser) -> None:
    with saying(f"{THOUGHT}So: {CALL}") as site, opened(chromium, site.url) as page:
        set_up(page, tools=TOOLS)
        ask(page, "How?")
        assert answers(page) == ["So:"]
        thoughts = page.locator(".assistant .reasoning")
        if thoughts.get_attribute("open") is None:
            thoughts.locator("summary").click()
        assert thoughts.locator(".content").inner_text() == "Let me\nsee."
        assert page.inner_text(".call p") == "Calls f"
        assert json.loads(page.inner_text(".call pre")) == {"x": "é"}

        page.get_by_label("Result of f").fill("42")
        with requests(page) as bodies:
            page.click("text=Send results")
            wait(page)
        *_, call, result = bodies[0]["messages"]
        assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": "é"}'}
        assert result == {
            "role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "42",
        }  # fmt: skip
        page.reload()
        assert page.locator(".call").count() == 2
        assert "Result of f: 42" in page.locator(".user").all_inner_texts()


@pytest.mark.parametrize(
    ("end", "said"), [("length", "cut off"), ("error", "could not finish"), ("timeout", "time")]
)
def test_how_an_answer_ended_is_said(chromium: Browser, end: Any, said: str) -> None:
    with saying("Well", end=end) as site, opened(chromium, site.url) as page:
        ask(page, "Hello")
        assert said in page.inner_text(".assistant").lower()


def test_tokens_that_make_no_text_are_counted(chromium: Browser) -> None:
    with saying("", reasoning="none") as site, opened(chromium, site.url) as page:
        ask(page, "Hello")
        assert page.inner_text(".stats") == "nothing was said · 1 token"
        assert kept(page)[0]["turns"][0]["answers"][0]["stats"]["tokens"] == 1
        page.reload()
        assert page.inner_text(".stats") == "nothing was said · 1 token"


def test_what_is_said_before_the_models_are_known_waits_for_them(
    chromium: Browser, slow: Live
) -> None:
    with opened(chromium, slow.url) as page, requests(page) as bodies:
        held: list[Route] = []
        page.route("**/v1/models", lambda route: held.append(route))
        page.reload()
        say(page, "Hello")
        page.wait_for_timeout(100)
        assert bodies == []
        held[0].continue_()
        page.wait_for_selector(".stats:has-text('tokens')")
        assert [body["model"] for body in bodies] == ["tiny"]
        assert page.input_value("#input") == ""


def test_a_lost_connection_is_said(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        page.wait_for_selector("#model option", state="attached")
        half = 'data: {"choices": [{"index": 0, "delta": {"content": "We"}}]}\n\n'
        page.route("**/chat/completions", lambda route: route.fulfill(body=half))
        ask(page, "Hello")
        assert answers(page) == ["We"]
        assert "connection ended" in page.inner_text(".assistant .error")
        page.unroute("**/chat/completions")
        page.route("**/chat/completions", lambda route: route.abort())
        ask(page, "Hello")
        assert "cannot be reached" in page.inner_text(".assistant .error >> nth=-1")


# ---- the same elsewhere


def test_code_asks_for_the_same(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        set_up(page, system="It's short.", temperature="0.5", top_k="7", max_tokens="9", seed="5")
        set_up(page, stop="\\n", timeout="30", min_p="0.1", logprobs="on")
        ask(page, "Hi 'there' \\ \"you\"\n$HOME `x` é")
        (conversation,) = kept(page)
        answer = conversation["turns"][0]["answers"][0]["choices"][0]["content"]
        page.click("#code")
        shown = {}
        for language in ("curl", "Python"):
            page.click(f"#code-choices >> text={language}")
            shown[language] = page.inner_text("#code-text")
        curl = subprocess.run(
            ["bash", "-c", shown["curl"]], capture_output=True, text=True, check=True
        )
        events = [json.loads(line[6:]) for line in curl.stdout.splitlines() if line[6:7] == "{"]
        deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
        assert "".join(delta.get("content", "") for delta in deltas) == answer
        python = subprocess.run(
            [sys.executable, "-c", shown["Python"]], capture_output=True, check=True
        )
        assert python.stdout.decode() == answer


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
        page.wait_for_selector("#model option", state="attached")
        set_up(page, max_tokens="3")
        ask(page, "Hello")
        assert "3 tokens" in page.inner_text(".assistant .stats")
        assert len(answers(page)) == 1  # what failed before is not part of the conversation
        page.click("#code")
        assert KEY not in page.inner_text("#code-text")
        known = page.evaluate("JSON.stringify([localStorage, document.cookie])")
        assert KEY not in known


# ---- tokens


def shown_alternatives(page: Page) -> list[str]:
    return [row.split("\t")[1] for row in page.inner_text(".alternatives").splitlines()]


@pytest.mark.model
def test_shown_probabilities_are_the_apis(chromium: Browser, smollm2_path: Path) -> None:
    asked = {"temperature": 0.9, "seed": 11, "max_tokens": 10, "logprobs": True, "top_logprobs": 4}
    with serving(smollm2_path) as (curl, _), opened(chromium, base_url(curl)) as page:
        set_up(page, **{name: str(value) for name, value in asked.items()})
        ask(page, "Name a colour.")
        page.get_by_role("button", name="Tokens", exact=True).click()
        body = asked | {"messages": [{"role": "user", "content": "Name a colour."}]}
        answer = httpx.post(f"{base_url(curl)}/v1/chat/completions", json=body, timeout=60).json()
        entries = answer["choices"][0]["logprobs"]["content"]
        tokens = page.locator(".token")
        assert [token.text_content() for token in tokens.all()] == [e["token"] for e in entries]
        tokens.first.focus()
        for token, entry in zip(tokens.all(), entries, strict=True):
            expect(token).to_be_focused()
            own = {o["token"]: o["logprob"] for o in [*entry["top_logprobs"], entry]}
            expected = sorted(own.values(), reverse=True)
            assert shown_alternatives(page) == [f"{100 * math.exp(p):.2f} %" for p in expected]
            page.keyboard.press("ArrowRight")
        tokens.nth(1).hover()
        assert tokens.nth(1).get_attribute("aria-selected") == "true"
