"""Conversations in the browser's store, and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.browser import answers, ask, kept, opened, say, set_up
from tests.server.live import Live, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

TITLES = "#conversations-list .title"


def titles(page: Page) -> list[str]:
    if not page.locator("#conversations-dialog").is_visible():
        page.click("#conversations")
    return page.locator(TITLES).all_inner_texts()


def talk(page: Page) -> None:
    """Two conversations: of two turns, and of one with other settings."""
    set_up(page, max_tokens="3")
    ask(page, "First")
    ask(page, "More")
    page.click("#new")
    set_up(page, max_tokens="5", system="Second's")
    ask(page, "Second")


def test_several_survive_a_reload_each_with_its_settings(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        talk(page)
        before = answers(page)
        page.reload()
        assert answers(page) == before
        assert titles(page) == ["Second", "First"]
        page.click(f"{TITLES} >> text=First")
        assert page.inner_text("#title") == "First"
        assert len(answers(page)) == 2
        fields = page.input_value("#a-max_tokens"), page.input_value("#a-system")
        assert fields == ("3", "")
        page.reload()
        assert page.inner_text("#title") == "First"  # the one that was open


def test_one_is_renamed_and_deleted_and_comes_back(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        talk(page)
        page.click("#conversations")
        for number, name in ((1, "An old one"), (0, "The open one")):
            page.get_by_role("button", name="Rename").nth(number).click()
            page.keyboard.type(name)
            page.keyboard.press("Enter")
        assert titles(page) == ["The open one", "An old one"]
        assert page.inner_text("#title") == "The open one"

        page.get_by_role("button", name="Delete The open one").click()
        assert titles(page) == ["An old one"]
        assert page.inner_text("#title") == "An old one"
        page.keyboard.press("Enter")  # on Undo, which has the focus
        assert titles(page) == ["The open one", "An old one"]
        page.get_by_role("button", name="Delete An old one").click()
        page.reload()
        assert titles(page) == ["The open one"]
        assert len(answers(page)) == 1


def test_another_is_opened_while_one_is_answered(chromium: Browser, slow: Live) -> None:
    """The answer is stopped, and belongs to where it was asked."""
    with opened(chromium, slow.url) as page:
        say(page, "Long")
        page.wait_for_selector(".content:has-text('e')")
        page.click("#new")
        assert eventually(slow.is_idle)
        assert answers(page) == []
        (conversation,) = kept(page)
        assert conversation["turns"][0]["answers"][0]["stopped"] is True
        say(page, "Deleted while it is answered")
        page.click("#conversations")
        page.get_by_role("button", name="Delete Deleted").click()
        assert eventually(slow.is_idle)
        assert titles(page) == ["Long"]


def test_a_file_brings_all_back(chromium: Browser, slow: Live, tmp_path: Path) -> None:
    with opened(chromium, slow.url) as page:
        talk(page)
        page.click("#conversations")
        with page.expect_download() as download:
            page.click("#conversations-export")
        file = tmp_path / "conversations.json"
        download.value.save_as(file)
        before = kept(page)
    with opened(chromium, slow.url) as page:
        page.click("#conversations")
        page.set_input_files("#conversations-import", file)
        page.wait_for_selector("text=2 conversations came in.")
        after = kept(page)
        assert [{**one, "id": ""} for one in after] == [{**one, "id": ""} for one in before]
        page.set_input_files("#conversations-import", file)
        page.wait_for_selector("#conversations-list li >> nth=3")  # nothing is overwritten
        assert sorted(titles(page)) == ["First", "First", "Second", "Second"]


ANSWER: dict[str, Any] = {
    "model": "m",
    "picked": 0,
    "choices": [{"content": "c", "reasoning": "", "calls": [], "finish": "stop"}],
}


def file_of(*turns: Any, **fields: Any) -> Any:
    one = {"id": "x", "title": "t", "changed": 1, "settings": [], "compare": False, "turns": turns}
    return {"format": "pellucid.conversations.v1", "conversations": [{**one, **fields}]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON"),
        ("null", "not an export"),
        (json.dumps({"messages": []}), "not an export"),
        (json.dumps({**file_of(), "conversations": 7}), "conversations must be a list"),
        (json.dumps(file_of(title=["<b>"])), "conversations[0].title must be text"),
        ('{"format":"pellucid.conversations.v1","conversations":[{"id":"x","title":"t","changed":1e999}]}',
         "changed must be a number"),
        (json.dumps(file_of({"user": "u", "answers": [{**ANSWER, "choices": [None]}]})),
         "turns[0].answers[0].choices[0] must be an object"),
        (json.dumps(file_of({"answers": []})), "either user or results"),
        (json.dumps(file_of({"user": "u", "answers": [ANSWER] * 3})), "at most two"),
        (json.dumps(file_of({"user": "y" * 9_000_000, "answers": []})),
         "no room"),
        (" " * 20_000_001, "too large"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_brings_nothing(
    chromium: Browser, slow: Live, tmp_path: Path, content: str, problem: str
) -> None:
    (tmp_path / "wrong.json").write_text(content)
    with opened(chromium, slow.url) as page:
        page.click("#conversations")
        page.set_input_files("#conversations-import", tmp_path / "wrong.json")
        page.wait_for_selector(f"#conversations-status:has-text('{problem}')")
        assert kept(page) == []


def test_what_else_is_in_the_store_is_no_conversation(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        set_up(page, max_tokens="3")
        ask(page, "Mine")
        page.evaluate(
            "localStorage['pellucid.chat:y'] = '{'; localStorage['pellucid.chat:z'] = '[]'"
        )
        page.evaluate("localStorage['pellucid.current'] = sessionStorage['pellucid.current'] = 'y'")
        page.reload()
        assert len(answers(page)) == 1
        assert titles(page) == ["Mine"]


def test_a_full_store_is_said_and_the_chat_goes_on(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        page.evaluate(
            "for (let size = 2 ** 22, i = 0; size > 8; size >>= 1) for (;;)"
            " try { localStorage[`x${i++}`] = 'x'.repeat(size) } catch { break }"
        )
        set_up(page, max_tokens="3")
        say(page, "Hello")
        page.wait_for_selector(".stats:has-text('3 tokens')")
        page.wait_for_selector("#status:has-text('keeps no more')")
