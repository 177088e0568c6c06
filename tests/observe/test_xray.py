"""What a feed's readers get is enough to rebuild the engine's state."""

from __future__ import annotations

import json

import msgspec
import pytest

from pellucid.engine import events
from pellucid.engine.core import EngineCore
from pellucid.frontend.events import EventHub
from pellucid.observe import xray
from pellucid.observe.trace import trace_parts
from pellucid.observe.xray import Feed, Totals
from tests.engine import helpers
from tests.engine.replay import Replay
from tests.observe.runs import CROWDED, add, crowded
from tests.observe.trace_format import check_format


class Reader:
    """What the page keeps; it knows parts as JSON and nothing else."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.position: int | None = None
        self.state = Replay()
        self.totals = Totals()
        self.left_out = 0
        self.last: events.StepEvents | None = None

    def read(self) -> int:
        """How many steps there were."""
        part = self.feed.take(self.position)
        if part is None:
            return 0
        told = json.loads(msgspec.json.encode(part))
        if "totals" in told:
            self.totals = Totals(**told["totals"])
        else:
            assert told["first"] == self.position
        self.left_out += told.get("left_out", 0)
        for row in told["steps"]:
            self.last = msgspec.convert(row, events.StepEvents)
            self.state.apply(self.last)
            self.totals.add(self.last)
        self.position = told["first"] + len(told["steps"])
        return len(told["steps"])

    def check(self, engine: EngineCore) -> None:
        assert self.last is not None
        self.state.check(engine, self.last, detail=True)


def start(**settings: object) -> tuple[EngineCore, EventHub, Feed]:
    engine, feed = helpers.core(**settings), Feed()
    hub = EventHub(engine.handle)
    hub.subscribe(feed, detail=True)
    return engine, hub, feed


@pytest.mark.parametrize("every", [1, 7])
def test_parts_add_up_to_the_engines_state(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.engine.recorder.events.SNAPSHOT_STEPS", 10)  # in the midst of it
    engine, hub, feed = start(**CROWDED)
    reader, left, num_steps = Reader(feed), crowded(), 0
    while left or engine.has_work:
        if left:
            engine.add(left.pop(0))
        hub.publish(engine.step().events)
        num_steps += 1
        if num_steps % every == 0:
            assert reader.read() == every
            reader.check(engine)
    reader.read()
    reader.check(engine)
    assert (reader.totals.finished, reader.totals.generated) == (6, 6 * 20)
    assert reader.totals.found == engine.scheduler.counters.prefix_hits > 0
    assert reader.totals.preempted == engine.scheduler.counters.preemptions > 0
    assert reader.left_out == 0


def test_who_comes_late_gets_all_there_is() -> None:
    engine, hub, feed = start()
    for name in ("a", "a2"):
        engine.add(add(name, 40, max_tokens=30))
    for _ in range(12):
        hub.publish(engine.step().events)
    reader = Reader(feed)
    reader.read()
    reader.check(engine)
    first = Reader(feed)
    first.read()
    assert reader.totals == first.totals
    assert reader.totals.generated > 0


def test_an_idle_engine_tells_its_state_at_once() -> None:
    engine = helpers.core()
    engine.add(add("a", 40, max_tokens=3))
    while engine.has_work:
        engine.step()
    feed, hub = Feed(), EventHub(engine.handle)
    stop = hub.subscribe(feed, detail=True)
    assert engine.has_work
    hub.publish(engine.step().events)
    assert not engine.has_work
    reader = Reader(feed)
    assert reader.read() == 1
    reader.check(engine)
    assert reader.state.named
    stop()
    assert not engine.has_work  # nobody is left to be told


def test_a_slow_reader_begins_anew_and_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xray, "MAX_STEPS", 12)
    monkeypatch.setattr("pellucid.engine.recorder.events.SNAPSHOT_STEPS", 10)
    engine, hub, feed = start()
    reader = Reader(feed)
    engine.add(add("a", 8, max_tokens=40))
    for _ in range(3):
        hub.publish(engine.step().events)
    reader.read()
    while engine.has_work:
        hub.publish(engine.step().events)
    assert reader.read() <= 12
    reader.check(engine)
    assert reader.left_out > 20
    assert (reader.totals.finished, reader.totals.generated) == (1, 40)


def test_memory_is_bounded_and_what_is_kept_begins_with_a_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pellucid.engine.recorder.events.SNAPSHOT_STEPS", 10)
    engine, feed = helpers.core(num_blocks=400), Feed(max_bytes=8000)
    hub = EventHub(engine.handle)
    hub.subscribe(feed, detail=True)
    engine.add(add("a", 8, max_tokens=300))
    num_steps = 0
    while engine.has_work:
        hub.publish(engine.step().events)
        num_steps += 1
        assert sum(map(len, feed._steps)) <= 8000
    kept = list(feed.kept())
    assert 10 < len(kept) < num_steps
    assert kept[0].snapshot is not None
    trace = json.loads(b"".join(trace_parts(kept, "fake", each=3)))
    check_format(trace)
    assert sum(e["name"].startswith("step ") for e in trace) == len([s for s in kept if s.shares])
    assert [e["args"]["reason"] for e in trace if e["name"] == "a"] == ["length"]
    late = Reader(feed)
    late.read()
    late.check(engine)
    assert late.totals.generated == 300


def test_steps_before_the_first_snapshot_are_left_alone() -> None:
    engine, feed = helpers.core(), Feed()
    hub = EventHub(engine.handle)
    hub.subscribe(lambda frame: None)  # without detail, from before
    engine.add(add("a", 8, max_tokens=9))
    for _ in range(3):
        feed(engine.step().events)
    assert feed.take(None) is None
    assert list(feed.kept()) == []
    hub.subscribe(feed, detail=True)
    hub.publish(engine.step().events)
    reader = Reader(feed)
    assert reader.read() == 1
    reader.check(engine)


def test_token_ids_stay_with_who_asked_for_them() -> None:
    engine, hub, feed = start()
    hub.subscribe(lambda frame: None, detail=True, tokens=True)
    engine.add(add("a", 8, max_tokens=3))
    steps = []
    while engine.has_work:
        hub.publish(engine.step().events)
    steps = list(feed.kept())
    assert sum(share.num_generated for step in steps for share in step.shares) == 3
    assert all(share.token_ids == [] for step in steps for share in step.shares)


def test_another_engine_begins_with_nothing_of_a_dead_one() -> None:
    feed = Feed()
    reader = Reader(feed)
    for names in ("abc", "d"):
        engine = helpers.core()
        for name in names:
            engine.add(add(name, 40, max_tokens=50))
        EventHub(engine.handle).subscribe(feed, detail=True)
        for _ in range(3):
            feed(engine.step().events)
        reader.read()
        reader.check(engine)
