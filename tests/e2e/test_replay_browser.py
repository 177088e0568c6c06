"""A recording in the page, behind `pellucid xray`, in a real browser."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pellucid.config import ObserveSettings, ServerConfig
from pellucid.observe.replay import Replay
from tests.e2e.browser import CHROMIUM, opened
from tests.e2e.test_page_access import SEEN, check
from tests.e2e.test_xray_browser import expect, load, numbers, saved
from tests.observe.trace_format import check_format
from tests.server.live import live

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")


@contextlib.contextmanager
def replaying(path: Path) -> Iterator[str]:
    command = (sys.executable, "-m", "pellucid", "xray", str(path), "--no-open")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next((line.split()[-1] for line in process.stderr if "Look at it" in line), "")
        assert url, "it ended before it was ready"
        yield url.rstrip("/")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def recorded(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, int], dict[str, float]]:
    """A recording of a load, and what the live page and /metrics said when it had ended."""
    path = tmp_path_factory.mktemp("recording") / "run.rec"
    config = ServerConfig(observe=ObserveSettings(record=str(path)))
    crowd: dict[str, Any] = {"max_num_seqs": 6, "runner": {"step_seconds": 0.01, "num_blocks": 64}}
    with live(config, **crowd) as site:
        with opened(chromium, site.url) as page:
            load(page, 32)
            expect(page.locator("#end-load")).to_be_hidden()
            expect(page.locator("#n-finished")).to_have_text("32")
            shown = numbers(page)
        told = {
            name: site.metric(f"vllm:{name}")
            for name in ("generation_tokens_total", "num_preemptions_total")
        }
    return path, shown, told


def test_a_recording_replays_to_what_the_live_page_had(
    chromium: Browser, recorded: tuple[Path, dict[str, int], dict[str, float]]
) -> None:
    path, shown, told = recorded
    with replaying(path) as url, opened(chromium, url) as page:
        expect(page.locator("#position")).to_be_enabled()
        expect(page.locator("#n-finished")).to_have_text("0")
        expect(page.locator("#chat")).to_be_hidden()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#n-tokens")).not_to_have_text("0")
        page.select_option("#speed", "20")
        page.click("#play")
        expect(page.locator("#n-finished")).to_have_text("32")
        expect(page.locator("#play")).to_contain_text("Play")  # it has ended
        assert numbers(page) == shown
        assert shown["tokens"] == told["generation_tokens_total"]
        assert shown["shared"] == shown["used"] == 0
        assert shown["cached"] > 0
        page.focus("#position")
        page.keyboard.press("Home")
        expect(page.locator("#n-finished")).to_have_text("0")
        page.keyboard.press("End")
        expect(page.locator("#n-finished")).to_have_text("32")
        assert numbers(page) == shown  # however one gets there

        page.locator("#lanes li").first.click()
        expect(page.locator("#request-summary")).to_contain_text("finished: length")
        trace = saved(page)
        check_format(trace)
        requests = [e["args"] for e in trace if "output_tokens" in e.get("args", {})]
        assert len(requests) == 32
        assert sum(args["output_tokens"] for args in requests) == shown["tokens"]
        preempted = sum(args["preemptions"] for args in requests)
        assert preempted == told["num_preemptions_total"]


def test_a_recording_that_was_cut_off_is_shown_to_its_end(
    chromium: Browser, recorded: tuple[Path, dict[str, int], dict[str, float]], tmp_path: Path
) -> None:
    path, whole = tmp_path / "cut.rec", recorded[0].read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    index = Replay(path)
    with replaying(path) as url, opened(chromium, url) as page:
        expect(page.locator("#recorded")).to_contain_text(f"the last {index.num_cut} bytes")
        expect(page.locator("#position")).to_be_enabled()
        page.focus("#position")
        page.keyboard.press("End")
        expect(page.locator("#n-tokens")).to_have_text(str(index.totals.generated))
        (last,) = index.steps(index.num_steps - 1)
        assert numbers(page)["used"] == last.pool.num_used > 0
    index.close()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_recording_fits_a_phone(
    chromium: Browser, recorded: tuple[Path, dict[str, int], dict[str, float]], scheme: str
) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme}
    with (
        replaying(recorded[0]) as url,
        opened(chromium, url, reduced_motion="reduce", **phone) as page,
    ):
        expect(page.locator("#position")).to_be_enabled()
        page.click("#forward")
        page.click("#forward")
        expect(page.locator("#n-tokens")).not_to_have_text("0")
        page.locator("#lanes li").first.click()
        expect(page.locator("#request-summary")).to_contain_text("in all")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        seen = page.evaluate(SEEN)
        assert any("recorded" in text for text, *_ in seen)
        check(seen)
