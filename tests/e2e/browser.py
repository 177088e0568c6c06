"""A headless Chromium, and the page in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MS = 60_000  # what is awaited comes sometime, however slow the machine
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it has none for root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield chromium
        chromium.close()


@contextmanager
def opened(chromium: Browser, url: str, **context: Any) -> Iterator[Page]:
    """The page in a browser that knows nothing yet; fails if it breaks its own rules."""
    complaints: list[str] = []
    with chromium.new_context(**context) as fresh:
        page = fresh.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(url) else complaints.append(asked.url),
        )
        page.on(
            "console",
            lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
        )
        page.goto(url)
        yield page
        assert complaints == []


# ---- what people do on the page


def say(page: Page, text: str) -> None:
    page.fill("#input", text)
    page.press("#input", "Enter")


def ask(page: Page, text: str) -> None:
    """Say `text` and wait for all of its answers."""
    say(page, text)
    wait(page)


def wait(page: Page) -> None:
    """Until every answer under way has ended."""
    page.wait_for_selector("#chat:not(.running)")


def set_up(page: Page, column: str = "a", **settings: str) -> None:
    """Fill in fields of a column's form; "" unticks what is ticked."""
    fold = "open => document.querySelectorAll('#settings, #settings details').forEach("
    page.evaluate(f"({fold}node => node.open = open))(true)")
    for name, value in settings.items():
        field = page.locator(f"#{column}-{name}")
        kind = field.evaluate("node => node.type")
        if kind == "checkbox":
            field.set_checked(bool(value))
        elif kind == "select-one":
            field.select_option(value)
        else:
            field.fill(value)
    page.evaluate(f"({fold}node => node.open = open))(false)")


def answers(page: Page) -> list[str]:
    return page.locator(".assistant .choice > .content").all_inner_texts()


def kept(page: Page) -> list[Any]:
    """The conversations in the browser's store, the last changed first."""
    found: list[Any] = page.evaluate(
        "Object.keys(localStorage).filter(key => key.startsWith('pellucid.chat:'))"
        ".map(key => JSON.parse(localStorage[key])).sort((a, b) => b.changed - a.changed)"
    )
    return found


@contextmanager
def requests(page: Page) -> Iterator[list[Any]]:
    """The bodies of the chats that are asked for meanwhile."""
    bodies: list[Any] = []

    def note(asked: Any) -> None:
        if asked.url.endswith("/v1/chat/completions"):
            bodies.append(json.loads(asked.post_data))

    page.on("request", note)
    yield bodies
    page.remove_listener("request", note)
