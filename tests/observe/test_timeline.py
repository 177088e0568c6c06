"""A request's time line against what the engine was made to do to it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from pellucid.observe.timeline import AnswerTimeline, StepRing, trace_answers
from tests.observe.runs import CROWDED, add, crowded, decoded, run


def timelines(frames: list[bytes], *names: str, begin: float) -> dict[str, AnswerTimeline]:
    answers = [AnswerTimeline(id=name) for name in names]
    trace_answers(decoded(frames), answers, received=begin, opened=begin, closed=time.monotonic())
    return {answer.id: answer for answer in answers}


def lived(messages: list[Any], **settings: Any) -> tuple[list[bytes], dict[str, AnswerTimeline]]:
    begin, frames = time.monotonic(), list[bytes]()
    run(messages, frames.append, **settings)
    return frames, timelines(frames, *(m.request_id for m in messages), begin=begin)


def test_every_moment_belongs_to_exactly_one_phase() -> None:
    begin, frames = time.monotonic(), list[bytes]()
    run(crowded(), frames.append, **CROWDED)
    answers = [AnswerTimeline(id=m.request_id) for m in crowded()]
    closed = time.monotonic()
    trace_answers(decoded(frames), answers, received=begin - 2.0, opened=begin, closed=closed)
    for answer in answers:
        whole = sum(msgspec.structs.astuple(answer.phases))
        assert whole == pytest.approx(closed - begin + 2.0, abs=1e-5)
        assert answer.phases.front_end >= 2.0
        waited = answer.phases.queue + answer.phases.stalled
        assert sum(answer.waits.values()) == pytest.approx(waited, abs=1e-5)
        told = sum(step.seconds for step in answer.steps)
        assert told == pytest.approx(whole - answer.phases.front_end, abs=1e-4)
        ends = [step.at + step.seconds for step in answer.steps]
        for end, after in zip(ends, answer.steps[1:], strict=False):
            assert after.at == pytest.approx(end, abs=1e-4)


def test_steps_tell_tokens_blocks_hits_and_preemptions() -> None:
    frames, found = lived(crowded(), **CROWDED)
    steps = decoded(frames)
    for name, answer in found.items():
        (number,) = [q.number for s in steps for q in s.queued if q.request_id == name]
        shares = [share for s in steps for share in s.shares if share.number == number]
        served = [step for step in answer.steps if step.doing in ("prefill", "decode")]
        assert [(s.tokens, s.generated, s.blocks) for s in served] == [
            (share.num_tokens, share.num_generated, share.num_blocks) for share in shares
        ]
        assert (answer.prompt_tokens, answer.output_tokens) == (20, 20)
        assert answer.finish_reason == "length"
        assert answer.complete
        preempted = sum(p.number == number for s in steps for p in s.preempted)
        assert answer.preemptions == preempted == sum(step.preempted for step in answer.steps)
        assert (answer.phases.stalled > 0) == (preempted > 0)
    assert sum(answer.preemptions for answer in found.values()) > 0
    assert found["a2"].cached_tokens > 0
    assert "from the cache" in found["a2"].summary
    assert found["e"].waits.keys() & {"seats", "blocks"}


def test_a_chunked_prompt_alone() -> None:
    _, found = lived([add("a", 20, max_tokens=3)], max_chunk_tokens=8)
    answer = found["a"]
    assert [(s.doing, s.tokens) for s in answer.steps if s.why is None] == [
        ("prefill", 8),
        ("prefill", 8),
        ("prefill", 4),
        ("decode", 1),
        ("decode", 1),
    ]
    assert answer.first_token_at is not None
    assert answer.finished_at is not None
    assert 0 <= (answer.admitted_at or 0) <= answer.first_token_at <= answer.finished_at
    assert "prefill (20 tokens in 3 steps)" in answer.summary
    assert "decode (2 tokens in 2 steps" in answer.summary
    assert answer.summary.endswith("finished: length")


def test_waiting_for_a_twin_is_named() -> None:
    _, found = lived([add("a", 40, max_tokens=2), add("a2", 40, max_tokens=2)], max_chunk_tokens=8)
    assert found["a2"].waits["prefix"] > 0
    assert "for a prefix that another request was computing" in found["a2"].summary


def test_an_old_request_has_lost_its_beginning_and_says_so() -> None:
    begin, frames = time.monotonic(), list[bytes]()
    run([add("a", 9, max_tokens=1100)], frames.append, num_blocks=400)
    late = timelines(frames[500:], "a", begin=begin)["a"]
    assert not late.complete
    assert late.finish_reason == "length"
    assert "not kept any more" in late.summary
    assert not timelines(frames[-2:], "a", begin=begin)["a"].complete


def test_a_request_that_died_with_its_engine_is_not_taken_for_anothers() -> None:
    begin, first, second = time.monotonic(), list[bytes](), list[bytes]()
    run([add("a", 9, max_tokens=20)], first.append)
    run([add("b", 9, max_tokens=20), add("c", 9, max_tokens=20)], second.append)
    found = timelines([*first[:5], *second], "a", "c", begin=begin)
    assert found["a"].output_tokens == 5
    assert found["a"].finish_reason is None
    assert (found["c"].output_tokens, found["c"].finish_reason) == (20, "length")


def test_the_ring_is_bounded_and_gives_what_came_since() -> None:
    ring = StepRing(max_bytes=100)
    for _ in range(50):
        ring(b"old" * 10)
    middle = time.monotonic()
    for letter in (b"a", b"b", b"c"):
        ring(letter * 10)
    assert ring.since(middle) == [b"a" * 10, b"b" * 10, b"c" * 10]
    assert sum(len(frame) for frame in ring.since(0.0)) <= 100
