"""The page's X-ray in a real browser: live, and gone back in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pellucid.config import EngineConfig
from pellucid.engine.client import InProcessClient
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.messages import AddRequest, Command, StepOutput
from pellucid.observe.xray import as_json
from pellucid.runner.fake import FakeRunner
from tests.e2e.browser import opened
from tests.engine.replay import Replay
from tests.frontend.tiny import LETTERS
from tests.observe.runs import CROWDED, crowded, decoded, guessed, run
from tests.observe.trace_format import check_format
from tests.server.live import Live, eventually, live

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

NUMBERS = ("finished", "tokens", "running", "queued", "used", "shared", "cached")


@contextlib.contextmanager
def watched(chromium: Browser, site: Live) -> Iterator[Page]:
    """A page whose sums begin with it: nobody else watches."""

    def nobody_watches() -> bool:
        return not site.call(lambda: site.server.app.state.xrays.num_readers)

    assert eventually(nobody_watches, 60)
    with opened(chromium, site.url) as page:
        yield page


def numbers(page: Page) -> dict[str, int]:
    return {name: int(page.inner_text(f"#n-{name}")) for name in NUMBERS}


def step_of(page: Page) -> int:
    return int(page.get_attribute("#when", "data-step") or -1)


def load(page: Page, clients: int = 8) -> None:
    page.click(f"[data-clients='{clients}']")


# ---- the state

STATES = """async (rows) => {
  const { State, noTotals } = await import("/page/state.js");
  const state = new State({ num_kv_blocks: 14, block_size: 4 }, noTotals());
  return rows.map((row) => {
    state.apply(row);
    const open = [...state.lanes.values()].filter((lane) => lane.end === null);
    const told = (lane) => [
      lane.phase === "running", lane.computed, lane.tokens, lane.preemptions, [...lane.table],
    ];
    return {
      lanes: Object.fromEntries(open.map((lane) => [lane.id, told(lane)])),
      holders: [...state.holders].map(([block, numbers]) => [block, numbers.length]),
      named: [...state.named],
      pool: Object.values(state.pool),
      totals: { ...state.totals },
    };
  });
}"""


@pytest.mark.parametrize("snapshot_steps", [1024, 10])
@pytest.mark.parametrize("drafting", [None, guessed(crowded())], ids=["plain", "drafts"])
def test_the_pages_state_is_what_the_events_say(
    chromium: Browser,
    slow: Live,
    snapshot_steps: int,
    drafting: Drafting | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pellucid.engine.recorder.events.SNAPSHOT_STEPS", snapshot_steps)
    frames: list[bytes] = []
    run(crowded(), frames.append, detail=True, drafting=drafting, **CROWDED)
    steps, replay = decoded(frames), Replay()
    with watched(chromium, slow) as page:
        states = page.evaluate(STATES, [json.loads(as_json(step)) for step in steps])
    for step, state in zip(steps, states, strict=True):
        replay.apply(step)
        assert state["lanes"] == {
            seen.request_id: [
                seen.is_running,
                seen.num_computed,
                seen.num_tokens,
                seen.num_preemptions,
                seen.table,
            ]
            for seen in replay.requests.values()
        }
        held = [block for seen in replay.requests.values() for block in seen.table]
        assert dict(state["holders"]) == {block: held.count(block) for block in held}
        assert set(state["named"]) == replay.named
        assert state["pool"] == [step.pool.num_used, step.pool.num_free, step.pool.num_named]
    totals = states[-1]["totals"]
    assert totals["finished"] == 6
    assert totals["preempted"] > 0
    assert (totals["drafted"] > totals["accepted"] > 0) == (drafting is not None)


# ---- live


def test_one_goes_back_and_returns_to_the_present(chromium: Browser, slow: Live) -> None:
    with watched(chromium, slow) as page:
        load(page, 32)
        expect(page.locator("#lanes li[data-phase=running]")).to_have_count(6)
        expect(page.locator("#n-tokens")).to_have_text(re.compile(r"\d\d"))
        page.click("#play")  # which pauses
        expect(page.locator("#play")).to_contain_text("Play")
        seen, step = numbers(page), step_of(page)
        page.click("#back")
        expect(page.locator("#when")).to_have_attribute("data-step", str(step - 1))
        assert numbers(page)["tokens"] < seen["tokens"]
        page.focus("#position")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#when")).to_have_attribute("data-step", str(step))
        assert numbers(page) == seen  # the same step is the same picture
        page.keyboard.press("Home")
        expect(page.locator("#n-tokens")).to_have_text("0")
        assert numbers(page)["used"] == 0
        page.click("#live")
        expect(page.locator("#when")).to_contain_text("live")
        assert step_of(page) > step
        expect(page.locator("#end-load")).to_be_hidden()
        expect(page.locator("#n-finished")).to_have_text("32")
        expect(page.locator("#load-status")).to_contain_text("32 clients: 32 answered")
        assert numbers(page)["used"] == 0


class Held(InProcessClient):
    """Begins when it has all of 32 requests, and stops after 16 steps until it may go on."""

    num_sent = 0

    def send(self, command: Command) -> None:
        super().send(command)
        self.num_sent += isinstance(command, AddRequest)

    async def outputs(self) -> AsyncIterator[StepOutput]:
        self.may_go_on = asyncio.Event()
        num_steps = 0
        async for output in super().outputs():
            yield output
            while 0 < self.num_sent < 32:
                await asyncio.sleep(0.001)
            num_steps += self.num_sent == 32
            if num_steps == 16:
                await self.may_go_on.wait()


@contextlib.contextmanager
def held_at_32() -> Iterator[tuple[Live, Held]]:
    """A server that has six of 32 requests running, and waits to be let go on."""
    config = EngineConfig.of(runner="fake", max_num_seqs=6)
    runner = FakeRunner(num_blocks=512, max_model_len=512, answer_vocab=LETTERS)
    held = Held(lambda: EngineCore(runner, config.cache, config.scheduler))
    with live(client=held, max_num_seqs=6) as site:
        yield site, held


def test_32_clients_are_32_lanes_and_their_blocks_those_of_metrics(chromium: Browser) -> None:
    with held_at_32() as (site, held), opened(chromium, site.url) as page:
        load(page, 32)
        expect(page.locator("#lanes li")).to_have_count(32)
        expect(page.locator("#n-tokens")).to_have_text(re.compile(r"\d\d"))

        def agrees() -> bool:
            used = round(site.metric("vllm:kv_cache_usage_perc") * 512)
            told = {
                "used": used,
                "running": site.metric("vllm:num_requests_running"),
                "queued": site.metric("vllm:num_requests_waiting"),
                "tokens": site.metric("vllm:generation_tokens_total"),
            }
            return told.items() <= numbers(page).items() and used > 0

        assert eventually(agrees, 60)
        seen = numbers(page)
        assert (seen["running"], seen["queued"], seen["finished"]) == (6, 26, 0)
        assert seen["used"] > seen["shared"] > 0
        site.call(held.may_go_on.set)
        expect(page.locator("#n-finished")).to_have_text("32")
        expect(page.locator("#n-used")).to_have_text("0")


@pytest.mark.parametrize("width", [390, 1440])
def test_numbers_of_lanes_are_not_cut(chromium: Browser, width: int) -> None:
    size = {"viewport": {"width": width, "height": 900}}
    with held_at_32() as (site, held), opened(chromium, site.url, **size) as page:
        if width == 390:
            page.click("#tab-xray")
        load(page, 32)
        expect(page.locator("#lanes li")).to_have_count(32)
        room = page.evaluate(
            """() => [...document.querySelectorAll("#lanes li > :first-child")].map((node) => {
                node.textContent = "#1234567";
                return node.clientWidth - node.scrollWidth;
            })"""
        )
        assert min(room) >= 0
        site.call(held.may_go_on.set)
        expect(page.locator("#n-finished")).to_have_text("32")


def test_preemptions_and_steps_left_out_are_told(chromium: Browser) -> None:
    crowd: dict[str, Any] = {"max_num_seqs": 6, "runner": {"num_blocks": 64}}
    with live(**crowd) as site, opened(chromium, site.url) as page:
        expect(page.locator("#engine")).to_contain_text("at most 6 requests at once")
        load(page, 32)
        expect(page.locator("#n-finished")).to_have_text("32")
        told = site.metric("vllm:num_preemptions_total")
        assert int(page.inner_text("#n-preempted")) == told > 0
        left_out = page.evaluate(
            """async () => {
                const { LiveHistory } = await import("/page/history.js");
                const history = new LiveHistory({});
                const row = (snapshot) => [...Array(18).fill([]), snapshot];
                history.add({ first: 0, totals: {}, steps: [row([])] });
                history.add({ first: 1, steps: [row(null)] });
                history.add({ first: 42, totals: {}, left_out: 40, steps: [row([]), row([])] });
                return history.leftOut;
            }"""
        )
        assert left_out == 40


def test_what_is_kept_plays_again(chromium: Browser, slow: Live) -> None:
    with watched(chromium, slow) as page:
        load(page)
        expect(page.locator("#end-load")).to_be_hidden()
        expect(page.locator("#n-finished")).to_have_text("8")
        end = numbers(page)
        page.focus("#position")
        page.keyboard.press("Home")
        expect(page.locator("#n-finished")).to_have_text("0")
        page.select_option("#speed", "20")
        page.click("#play")
        expect(page.locator("#when")).to_contain_text("live")
        assert numbers(page) == end


def test_a_page_opened_on_an_idle_engine_shows_what_it_holds(chromium: Browser, slow: Live) -> None:
    slow.post("/v1/completions", prompt="y" * 300, max_tokens=2, model="tiny")
    assert eventually(slow.is_idle)
    named = slow.call(lambda: slow.llm._client._core.scheduler.kv.num_named)
    with watched(chromium, slow) as page:
        expect(page.locator("#n-cached")).to_have_text(str(named))
        assert (numbers(page)["used"], numbers(page)["running"]) == (0, 0)
        expect(page.locator("#machine")).to_contain_text("CPU")


def test_a_requests_time_line_opens_by_keyboard_and_marks_its_blocks(
    chromium: Browser, slow: Live
) -> None:
    with watched(chromium, slow) as page:
        load(page)
        expect(page.locator("#lanes li[data-phase=finished]")).to_have_count(8)
        page.focus("#lanes")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("#request-summary")).to_contain_text("finished: length")
        name = page.inner_text("#request-id")
        told = slow.http.get(f"/v1/requests/{name.rsplit('-', 1)[0]}/timeline").json()
        answer = told["answers"][0]
        assert answer["id"] == name
        assert page.inner_text("#request-summary") == answer["summary"]
        events = page.inner_text("#request-events")
        for words in ("queued", "admitted", "prefill of", "first token", "finished: length"):
            assert words in events
        gaps = page.locator("#request-gaps p").text_content() or ""
        assert len(gaps.split(" · ")) == answer["output_tokens"] - 1
        page.click("#close-request")
        expect(page.locator("#request")).to_be_hidden()


def test_a_block_tells_what_it_holds(chromium: Browser, slow: Live) -> None:
    with watched(chromium, slow) as page:
        load(page)
        expect(page.locator("#n-shared")).not_to_have_text("0")
        page.click("#play")
        holders = page.locator("#lanes li[data-phase=running]").count()
        page.focus("#blocks")
        page.keyboard.press("ArrowRight")
        words = page.locator("#block")
        expect(words).to_contain_text("block 0: reference count")
        told = page.inner_text("#block")  # the load's common beginning
        assert f"reference count {holders}; tokens 0\u201315 (prompt) of #" in told
        assert told.endswith("named: can be found by its prefix")
        page.hover("#blocks", position={"x": 20, "y": 5})
        expect(words).to_contain_text("block 1:")
        page.click("#live")
        expect(page.locator("#end-load")).to_be_hidden()


def test_whom_the_queue_refuses_is_shown(chromium: Browser) -> None:
    with (
        live(max_num_seqs=2, max_waiting=3, runner={"step_seconds": 0.01}) as site,
        opened(chromium, site.url) as page,
    ):
        load(page, 128)
        expect(page.locator("#end-load")).to_be_hidden()
        status = page.inner_text("#load-status")
        refused = int(site.metric("pellucid_refused_requests_total", reason="queue_full"))
        assert status.startswith(f"128 clients: {128 - refused} answered, {refused} refused")
        assert "queue" in status


def test_the_trace_can_be_saved(chromium: Browser, slow: Live) -> None:
    with watched(chromium, slow) as page:
        load(page)
        expect(page.locator("#n-finished")).to_have_text("8")
        names = {str(item.get_attribute("title")) for item in page.locator("#lanes li").all()}
        trace = saved(page)
        check_format(trace)
        slices = {e["name"] for e in trace if "output_tokens" in e.get("args", {})}
        assert slices == names


def saved(page: Page) -> list[dict[str, Any]]:
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "pellucid-trace.json"
    trace: list[dict[str, Any]] = json.loads(Path(download.value.path()).read_bytes())
    return trace
