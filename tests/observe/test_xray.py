"""A reader's copy of an engine, put together from windows alone."""

from __future__ import annotations

import msgspec
import pytest

from pellucid.engine import events
from pellucid.engine.core import EngineCore
from pellucid.frontend.events import EventHub
from pellucid.observe import xray
from pellucid.observe.xray import Block, Seen, Window, Xray
from tests.engine import helpers
from tests.observe.runs import CROWDED, add, crowded


class Reader:
    """What the page keeps; it knows windows as JSON and nothing else."""

    def __init__(self) -> None:
        self.requests: dict[int, Seen] = {}
        self.blocks: dict[int, Block] = {}
        self.pool: events.Pool | None = None
        self.steps: list[int] = []
        self.ended: dict[int, str] = {}

    def read(self, window: Window) -> None:
        window = msgspec.json.decode(msgspec.json.encode(window), type=Window)
        self.requests |= {seen.number: seen for seen in window.requests}
        for ended in window.ended:
            self.requests.pop(ended.number, None)
            self.ended[ended.number] = ended.reason
        self.blocks |= {block.block: block for block in window.blocks}
        self.pool = window.pool or self.pool
        self.steps += [step.step for step in window.steps]

    def check(self, engine: EngineCore) -> None:
        scheduler, kv = engine.scheduler, engine.scheduler.kv
        assert {seen.request_id for seen in self.requests.values()} == set(scheduler.requests)
        tables: dict[int, list[int]] = {}
        for seen in self.requests.values():
            request = scheduler.requests[seen.request_id]
            waits = "preempted" if request.times.num_preemptions else "queued"
            assert seen.phase == ("running" if seen.request_id in scheduler.running else waits)
            assert (seen.num_computed, seen.num_tokens, seen.num_blocks) == (
                request.num_computed_tokens,
                request.num_tokens,
                len(request.block_table),
            )
            for block in request.block_table:
                tables.setdefault(block, []).append(seen.number)
        held = {block.block: sorted(block.holders) for block in self.blocks.values()}
        assert {block: numbers for block, numbers in held.items() if numbers} == {
            block: sorted(numbers) for block, numbers in tables.items()
        }
        named = {block.block for block in self.blocks.values() if block.is_named}
        assert named == set(kv.named_blocks())
        assert self.pool == events.Pool(kv.num_used, kv.num_free, kv.num_named)


@pytest.mark.parametrize("every", [1, 7])
def test_windows_add_up_to_the_engines_state(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SNAPSHOT_STEPS", 10)  # in the midst of it
    engine, sink, reader = helpers.core(**CROWDED), Xray(), Reader()
    hub = EventHub(engine.handle)
    hub.subscribe(sink, detail=True)
    left, num_steps = crowded(), 0
    while left or engine.has_work:
        if left:
            engine.add(left.pop(0))
        hub.publish(engine.step().events)
        num_steps += 1
        if num_steps % every == 0:
            reader.read(sink.take())
            reader.check(engine)
            assert not sink.has_news
    reader.read(sink.take())
    reader.check(engine)
    assert set(reader.ended.values()) == {"length"}
    assert len(reader.ended) == 6
    assert reader.steps == sorted(set(reader.steps))


def test_who_comes_late_gets_all_there_is() -> None:
    engine, reader = helpers.core(), Reader()
    for name in ("a", "a2"):
        engine.add(add(name, 40, max_tokens=30))
    for _ in range(12):
        engine.step()
    sink, hub = Xray(), EventHub(engine.handle)
    stop = hub.subscribe(sink, detail=True)
    hub.publish(engine.step().events)
    reader.read(sink.take())
    reader.check(engine)
    assert any(len(block.holders) == 2 for block in reader.blocks.values())
    stop()
    assert engine.step().events == b""


def test_a_slow_reader_is_told_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xray, "MAX_STEPS", 4)
    engine, sink = helpers.core(), Xray()
    hub = EventHub(engine.handle)
    hub.subscribe(sink, detail=True)
    engine.add(add("a", 8, max_tokens=10))
    while engine.has_work:
        hub.publish(engine.step().events)
    window = sink.take()
    assert (len(window.steps), window.left_out) == (4, 6)
    assert [ended.reason for ended in window.ended] == ["length"]


def test_another_engine_begins_with_nothing_of_a_dead_one() -> None:
    sink, reader = Xray(), Reader()
    for names in ("abc", "d"):
        engine = helpers.core()
        for name in names:
            engine.add(add(name, 40, max_tokens=50))
        EventHub(engine.handle).subscribe(sink, detail=True)
        for _ in range(3):
            sink(engine.step().events)
        reader.read(sink.take())
        reader.check(engine)
    assert reader.ended == {1: "abort", 2: "abort"}
