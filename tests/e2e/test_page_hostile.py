"""What is not to be trusted stays text: answers, titles, names of models, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser import answers, ask, opened, set_up
from tests.e2e.test_page_conversations import ANSWER, file_of, titles
from tests.server.live import live
from tests.server.test_reasoning import saying

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SCRIPT = "<script>document.title='owned'</script>"
IMAGE = "<img src=x onerror=\"document.title='owned'\">"
HOSTILE = f"""{SCRIPT} **bold {IMAGE}** <b>not</b>

{IMAGE}

# head <i>x</i>
- [click](javascript:document.title='owned')
- ![x](https://evil.test/x.png)

> <iframe src=//evil.test></iframe>

| {IMAGE} | b |
|--|--|
| <svg/onload=x()> | c |

<a href="javascript:x()">x</a> <style>*{{display:none}}</style>
```html onload=x
{SCRIPT}
```
`<img src=x onerror=alert(1)>` ~~<u>~~
```
never closed <b>"""
LIVING = "script, img, a, b, i, u, iframe, svg, style, object, link, [onerror], [onload], [style]"


def assert_inert(page: Page) -> None:
    for place in ("#messages", "#conversations-list", "header", "#title", "#settings"):
        found = (
            page.locator(place)
            .locator(LIVING)
            .evaluate_all("nodes => nodes.map(node => node.outerHTML)")
        )
        assert [html for html in found if "icon.svg" not in html and "token" not in html] == []
    assert page.title() == "pellucid"


def test_an_answer_stays_text(chromium: Browser) -> None:
    with saying(HOSTILE, "none") as site, opened(chromium, site.url) as page:
        set_up(page, logprobs="on")
        ask(page, HOSTILE)
        content = page.locator(".choice > .content")
        seen = content.inner_text()
        for literal in (SCRIPT, IMAGE, "<b>not</b>", "<i>x</i>", "<svg/onload=x()>", "<style>"):
            assert literal in seen
        assert "[click](javascript:document.title='owned')" in seen
        assert content.locator("strong").inner_text() == f"bold {IMAGE}"
        assert content.locator("pre code").all_inner_texts() == [SCRIPT, "never closed <b>"]
        assert_inert(page)
        page.get_by_role("button", name="Tokens", exact=True).click()
        assert content.locator(".tokens").inner_text().removesuffix("<eos>") == HOSTILE
        assert_inert(page)
        page.reload()
        assert_inert(page)
        assert titles(page)[0].startswith("<script>document")
        page.get_by_role("button", name="Rename").click()
        page.keyboard.type(IMAGE)
        page.keyboard.press("Enter")
        assert titles(page) == [IMAGE]
        assert_inert(page)


def test_thoughts_and_calls_stay_text(chromium: Browser) -> None:
    call = json.dumps({"name": "f", "arguments": {"x": SCRIPT}})
    text = f"<think>\n{HOSTILE}\n</think>\n\n<tool_call>\n{call}\n</tool_call>"
    with saying(text) as site, opened(chromium, site.url) as page:
        set_up(page, tools='[{"type": "function", "function": {"name": "f"}}]')
        ask(page, "x")
        assert SCRIPT in page.inner_text(".call")
        assert "never closed" in (page.text_content(".reasoning") or "")
        assert_inert(page)


def test_names_of_models_stay_text(chromium: Browser) -> None:
    names = (IMAGE, "\u202e<b>two</b>")
    with live(models=names) as site, opened(chromium, site.url) as page:
        page.click("#compare")
        set_up(page, max_tokens="2")
        set_up(page, "b", model=names[1], max_tokens="2")
        ask(page, "x")
        assert page.locator("#model option").all_inner_texts() == list(names)
        assert page.locator(".model bdi").all_inner_texts() == [IMAGE, "<b>two</b>"]
        assert_inert(page)


def test_a_file_stays_text(chromium: Browser, tmp_path: Path) -> None:
    content = json.loads(json.dumps(ANSWER).replace('"c"', json.dumps(HOSTILE)))
    content |= {"error": SCRIPT, "model": IMAGE}
    turn = {"user": SCRIPT, "answers": [content], "__proto__": {"polluted": 1}}
    file = json.dumps(file_of(turn, title=f"\u202e{IMAGE}\n\x00x", id="../" + SCRIPT))
    (tmp_path / "file.json").write_text(file.replace('"title"', '"__proto__": {"a": 1}, "title"'))
    with live() as site, opened(chromium, site.url) as page:
        page.click("#conversations")
        page.set_input_files("#conversations-import", tmp_path / "file.json")
        page.wait_for_selector("text=One conversation came in.")
        (title,) = titles(page)
        assert title == f"{IMAGE} x"
        page.click("#conversations-list .title")
        assert page.inner_text(".user > div") == SCRIPT
        assert page.inner_text(".assistant .error") == SCRIPT
        assert_inert(page)
        assert page.evaluate("({}).polluted ?? ({}).a ?? null") is None


@pytest.mark.parametrize(
    "text",
    [
        "x" * 3000,
        ">" * 1000 + " deep",
        "".join(f"{'  ' * depth}- item\n" for depth in range(60)),
        "*" * 1001 + "`" * 501 + "~" * 300 + "|" * 300,
        "- " + " " * 2000 + "x",
        "|" * 800 + "\n" + "|--" * 400,
        "a\x00\x07\x1b[31m\x7f\u202egnirts\u200b\ufeff\u2028b",
        "```" + "\n\n" * 300,
    ],
    ids=["line", "quotes", "list", "marks", "spaces", "cells", "control", "fence"],
)  # fmt: skip
def test_odd_text_is_shown_whole_and_breaks_nothing(chromium: Browser, text: str) -> None:
    with saying(text, "none") as site, opened(chromium, site.url) as page:
        page.set_viewport_size({"width": 360, "height": 700})
        ask(page, "x")
        assert "not finished" not in page.inner_text(".stats")
        characters = {c for c in text if c.isalnum()}
        assert characters <= set("".join(answers(page)))
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        ask(page, "and on")  # the page still works
        assert len(answers(page)) == 2
