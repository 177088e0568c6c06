"""The events of steps, on lives that are known in advance."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pellucid.engine import events
from pellucid.engine.core import EngineCore
from pellucid.messages import Observe
from tests.engine import helpers
from tests.engine.helpers import message
from tests.engine.replay import Replay


def watched(**settings: Any) -> EngineCore:
    engine = helpers.core(**settings)
    engine.handle(Observe(num_listeners=1, detail=True, tokens=True))
    return engine


def step(engine: EngineCore) -> events.StepEvents:
    return events.decode(engine.step().events)


def waits(seen: events.StepEvents) -> tuple[dict[int, str], str | None]:
    return {stall.number: stall.why for stall in seen.stalls}, seen.queue_waits_for


def test_a_request_from_queue_to_end() -> None:
    engine = watched(max_chunk_tokens=6)
    engine.add(message("a", list(range(5, 15)), max_tokens=2))
    first, second, third = step(engine), step(engine), step(engine)
    assert [(q.number, q.request_id, q.num_prompt_tokens) for q in first.queued] == [(0, "a", 10)]
    assert first.admitted == [events.Admitted(0, 0)]
    assert first.shares == [events.Share(0, 0, 6, True, 0, 3, [0, 1, 2])]
    assert first.named == [0]
    assert first.pool == events.Pool(3, 61, 1)
    (share,) = second.shares
    assert (share.start, share.num_tokens, share.is_prefill, share.num_generated) == (6, 4, True, 1)
    assert second.first_tokens == [0]
    (share,) = third.shares
    assert (share.start, share.num_tokens, share.is_prefill, share.num_generated) == (
        10,
        1,
        False,
        1,
    )
    assert len(share.token_ids) == 1
    assert third.first_tokens == []
    (finished,) = third.finished
    assert (finished.number, finished.reason, finished.num_output_tokens) == (0, "length", 2)
    assert finished.num_blocks == 3
    assert third.pool == events.Pool(0, 64, 2)
    assert third.time <= finished.time <= third.end
    assert not engine.has_work


def test_a_cached_prefix_and_a_twin_that_waits_for_it() -> None:
    engine = watched()
    for name in ("a", "b"):
        engine.add(message(name, list(range(5, 15)), max_tokens=4, arrival=ord(name)))
    seen = step(engine)
    assert waits(seen) == ({1: "prefix"}, None)
    assert engine.step().stats.num_deferred == 0
    engine.add(message("c", list(range(5, 15)), max_tokens=1))
    assert step(engine).admitted == [events.Admitted(2, 8)]


def test_why_requests_wait() -> None:
    engine = watched(max_num_batched_tokens=8)
    engine.add(message("a", [5] * 8, arrival=1.0))
    engine.add(message("b", [6] * 8, arrival=2.0))
    assert waits(step(engine)) == ({}, "budget")
    engine = watched(num_blocks=6)
    for number, name in enumerate("abc"):
        engine.add(message(name, [5 + number] * 12, max_tokens=8, arrival=float(number)))
    engine.add(message("d", [9], max_tokens=8, arrival=9.0))
    assert waits(step(engine)) == ({2: "blocks"}, "turn")
    engine = watched(max_num_seqs=1)
    engine.add(message("a", [5] * 8, arrival=1.0))
    engine.add(message("b", [6] * 8, arrival=2.0))
    assert waits(step(engine)) == ({}, "seats")


def test_who_has_no_grammar_yet_is_passed_by_others() -> None:
    engine = watched()
    for number, name in enumerate("ab"):
        engine.add(message(name, [5 + number] * 8, arrival=float(number)))
    engine.scheduler.requests["a"].is_ready = False
    seen = step(engine)
    assert waits(seen) == ({0: "grammar"}, None)
    assert [share.number for share in seen.shares] == [1]


def test_a_running_request_without_budget_is_stalled() -> None:
    engine = watched(max_num_batched_tokens=4, max_chunk_tokens=2)
    for name in "ab":
        engine.add(message(name, [ord(name)] * 8, arrival=float(ord(name)), max_tokens=9))
    assert len(step(engine).shares) == 2
    engine.scheduler.token_budget = 2
    assert waits(step(engine)) == ({1: "budget"}, None)


def test_a_preemption_frees_blocks_and_the_return_is_told() -> None:
    engine = watched(num_blocks=4, prefix_caching=False)
    for number, name in enumerate("ab"):
        engine.add(message(name, [5 + number] * 7, max_tokens=6, arrival=float(number)))
    seen = [step(engine) for _ in range(12)]
    (preempting,) = [s for s in seen if s.preempted]
    assert preempting.preempted == [events.Preempted(1, 2)]
    assert preempting.queue_waits_for == "blocks"
    returns = [a for s in seen for a in s.admitted if a.is_return]
    assert returns == [events.Admitted(1, 0, True)]


def test_memory_taken_from_a_cached_prefix_is_forgotten() -> None:
    engine = watched(num_blocks=4)
    engine.add(message("a", [5] * 8, max_tokens=1))
    assert step(engine).named == [0, 1]
    engine.add(message("b", [6] * 12, max_tokens=4))
    seen = step(engine)
    assert seen.forgotten == [1]  # the tail goes first; two blocks never had a name
    assert seen.pool.num_named == 1 + len(seen.named)


def test_a_listener_who_comes_late_gets_the_whole_state() -> None:
    engine = helpers.core()
    engine.add(message("a", [5] * 9))
    assert engine.step().events == b""
    engine.handle(Observe(num_listeners=1, detail=True))
    seen = step(engine)
    assert seen.snapshot is not None
    replay = Replay()
    replay.apply(seen)
    replay.check(engine, seen, detail=True)
    assert step(engine).snapshot is None
    engine.handle(Observe(num_listeners=0))
    assert engine.step().events == b""
    assert engine.scheduler.watcher is None  # nothing piles up for nobody


def test_without_asking_there_are_no_ids_of_blocks_or_tokens() -> None:
    engine = helpers.core()
    engine.handle(Observe(num_listeners=1))
    engine.add(message("a", [5] * 9))
    for seen in (step(engine), step(engine)):
        assert [(s.block_ids, s.token_ids) for s in seen.shares] == [([], [])]
        assert (seen.named, seen.forgotten) == ([], [])


def test_the_parts_of_steps_follow_each_other() -> None:
    engine = watched()
    engine.add(message("a", [5] * 9))
    seen = [step(engine) for _ in range(4)]
    for before, after in pairwise(seen):
        assert abs(before.end + after.idle_seconds - after.time) < 1e-6
        assert min(after.idle_seconds, after.schedule_seconds, after.update_seconds) >= 0
