"""The page for everybody: by keyboard alone, on a phone, seen badly or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pellucid.server.page
from tests.e2e.browser import answers, ask, kept, opened, set_up, wait
from tests.server.live import Live
from tests.server.test_reasoning import saying

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

STYLE = (Path(pellucid.server.page.__file__).parent / "style.css").read_text()
# Text on what is behind it, by the names of the style's variables.
PAIRS = [
    *(("text", back) for back in ("back", "panel", "mine")),
    *(("soft", back) for back in ("back", "panel", "mine")),
    *(("accent", back) for back in ("back", "panel")),
    *(("warn", back) for back in ("back", "panel")),
    ("warn", "mine"),
    ("on-accent", "accent"),
]
MARKDOWN = (
    "# Head\n\nText with `code`, **bold**, ~~gone~~.\n\n> quoted\n\n1. one\n2. two\n\n"
    "| a | b |\n|--|--|\n| c | d |\n\n```py\nprint(1)\n```\n"
)


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of #rgb or #rrggbb."""
    digits = colour.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(scheme: str) -> None:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+)", part)) for part in STYLE.split("@media")[:2]
    )
    colours = light if scheme == "light" else light | dark
    for text, back in PAIRS:
        assert contrast(colours[text], colours[back]) >= 4.5, (text, back)


# The text, colour and background of every text that is seen.
SEEN = """() => [...document.querySelectorAll("header *, main *, dialog[open] *")].filter((node) =>
    node.checkVisibility() && !node.disabled &&
    [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim())
).map((node) => {
    let behind = node;
    const back = () => getComputedStyle(behind).backgroundColor;
    while (back() === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    return [node.textContent.slice(0, 40), getComputedStyle(node).color,
        back(), getComputedStyle(node).opacity];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_one_of_these_colours(chromium: Browser, scheme: str) -> None:
    """So that the contrasts above are those of the page."""
    with (
        saying(f"<think>\nHm.\n</think>\n\n{MARKDOWN}", end="length") as site,
        opened(chromium, site.url, color_scheme=scheme) as page,
    ):
        set_up(page, logprobs="on", n="2")
        ask(page, "Hello")
        set_up(page, temperature="5")
        ask(page, "Wrong")
        seen = page.evaluate(SEEN)
        page.click("#conversations")
        seen += page.evaluate(SEEN)
        assert len(seen) > 60
        check(seen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_xrays_texts_stand_out_too(chromium: Browser, slow: Live, scheme: str) -> None:
    with opened(chromium, slow.url, color_scheme=scheme) as page:
        page.click("text=32 clients")
        page.wait_for_selector("#lanes li[data-phase=running]")
        page.click("#play")  # which pauses
        seen = page.evaluate(SEEN)
        page.focus("#lanes")
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        page.wait_for_selector("#request-events li")
        page.click("#request-gaps summary")
        page.hover("#blocks")
        seen += page.evaluate(SEEN)
        words = " ".join(text for text, *_ in seen)
        for shown in ("running", "queued", "Request #", "reference count", "CPU", "admitted"):
            assert shown in words
        check(seen)


def check(seen: list[list[str]]) -> None:
    """What `SEEN` found has the contrast that WCAG 2.2 asks for (AA)."""
    for text, *colours, opacity in seen:
        codes = [f"#{int(r):02x}{int(g):02x}{int(b):02x}" for r, g, b in map(numbers, colours)]
        assert contrast(*codes) >= 4.5, (text, colours)
        assert opacity == "1", text


def numbers(colour: str) -> list[str]:
    return re.findall(r"\d+", colour)[:3]


FOCUSED = """() => {
    const node = document.activeElement;
    return [node.ariaLabel ?? node.textContent.trim(), getComputedStyle(node).outlineStyle];
}"""


def focus_on(page: Page, name: str) -> None:
    """Press Tab until the control of that name has the focus, and can be seen to."""
    for _ in range(80):
        page.keyboard.press("Tab")
        label, outline = page.evaluate(FOCUSED)
        if label == name:
            assert outline == "solid"
            return
    raise AssertionError(f"Tab does not lead to {name}")


def test_all_can_be_done_by_keyboard(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        page.wait_for_selector("#model option", state="attached")
        press, write = page.keyboard.press, page.keyboard.type
        focus_on(page, "Settings")
        press("Enter")
        for name, value in (("max_tokens", "6"), ("logprobs", " ")):
            while page.locator(":focus").get_attribute("id") != f"a-{name}":
                press("Tab")
            write(value)
        focus_on(page, "Message")
        write("Hello")
        press("Shift+Enter")
        write("you")
        focus_on(page, "Send")
        press("Enter")
        wait(page)
        expect(page.locator("#status")).to_have_text("Answered.")
        expect(page.locator("#send")).to_be_focused()  # not lost with the Stop that was there
        focus_on(page, "Tokens")
        press("Enter")
        press("Shift+Tab")  # what it opened is before it
        press("ArrowRight")
        expect(page.locator(".token").nth(1)).to_be_focused()
        press("End")
        expect(page.locator(".token").last).to_be_focused()
        assert page.locator(".alternatives tr").count() >= 1
        focus_on(page, "Again")
        press("Enter")
        wait(page)
        focus_on(page, "Side by side")
        press("Space")
        assert page.input_value("#b-max_tokens") == "6"  # it begins as the other is
        focus_on(page, "Conversations")
        press("Enter")
        expect(page.locator("#conversations-list .title")).to_be_focused()
        focus_on(page, "Rename Hello you")
        press("Enter")
        write("Mine")
        press("Escape")  # no new name, and the dialog stays
        expect(page.locator("#conversations-dialog")).to_be_visible()
        press("Escape")
        expect(page.locator("#conversations")).to_be_focused()
        focus_on(page, "Edit")
        press("Enter")
        expect(page.locator("#input")).to_be_focused()
        press("Escape")
        assert page.inner_text("#title") == "Hello you"


def test_every_control_has_a_name(chromium: Browser, slow: Live) -> None:
    with opened(chromium, slow.url) as page:
        page.click("#compare")
        set_up(page, max_tokens="3", logprobs="on")
        page.evaluate("document.querySelector('#settings').open = true")
        ask(page, "Hello")
        page.get_by_role("button", name="Tokens", exact=True).first.click()
        for role in (
            "button",
            "textbox",
            "spinbutton",
            "combobox",
            "checkbox",
            "option",
            "listbox",
        ):
            nameless = page.get_by_role(role, name=re.compile("^$")).all()
            assert [node.evaluate("node => node.outerHTML") for node in nameless] == []
        live = page.locator("[aria-live], [role=status], [role=alert]")
        assert not live.locator(".assistant").count()  # no reader has to hear every token


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_is_wider_than_the_screen(chromium: Browser, width: int) -> None:
    table = f"| {' | '.join('abcdefghijklmnopqrst')} |\n|{'--|' * 20}"
    wide = f"{MARKDOWN}\n```\n{'x' * 300}\n```\n{table}"
    with saying(wide, "none") as site:
        phone = {"viewport": {"width": width, "height": 700}}
        with opened(chromium, site.url, **phone) as page:
            page.click("#compare")
            ask(page, "y" * 200)
            page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            for place in ("#chat", "#messages", "#settings"):
                node = page.locator(place)
                assert node.evaluate("node => node.scrollWidth - node.clientWidth") <= 0, place
            assert page.evaluate("document.documentElement.scrollWidth") == width
            page.click("#settings > summary")
            assert page.locator("#send").is_visible()
            page.click("#conversations")
            box = page.locator("#conversations-dialog").bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


def test_markdown_becomes_what_it_means(chromium: Browser) -> None:
    nested = "1. one\n   - inner **b**\n\n   more of *one*\n2. two\n\n---\na | b\n\n2 * 3 * 4"
    with saying(MARKDOWN + nested, "none") as site:
        permissions = ["clipboard-read", "clipboard-write"]
        with opened(chromium, site.url, permissions=permissions) as page:
            ask(page, "x")
            content = page.locator(".choice > .content")
            html = re.sub(r"<(\w+)[^>]*>", r"<\1>", content.inner_html())
            assert html.replace("<button>Copy</button>", "") == (
                "<h4>Head</h4>"
                "<p>Text with <code>code</code>, <strong>bold</strong>, <del>gone</del>.</p>"
                "<blockquote><p>quoted</p></blockquote><ol><li>one</li><li>two</li></ol>"
                "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
                "<tbody><tr><td>c</td><td>d</td></tr></tbody></table></div>"
                "<div><div><bdi>py</bdi></div><pre><code>print(1)</code></pre></div>"
                "<ol><li>one<ul><li>inner <strong>b</strong></li></ul>"
                "<p>more of <em>one</em></p></li>"
                "<li>two</li></ol><hr><p>a | b</p><p>2 * 3 * 4</p>"
            )
            content.get_by_role("button", name="Copy").click()
            expect(content.get_by_role("button", name="Copied")).to_be_visible()
            assert page.evaluate("navigator.clipboard.readText()") == "print(1)"
            assert len(kept(page)) == len(answers(page)) == 1
