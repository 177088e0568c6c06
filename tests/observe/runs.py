"""Runs of an engine with a fake model, seen through the event hub."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from pellucid.engine import events
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.frontend.events import EventHub, Sink
from pellucid.messages import AddRequest, EngineInfo, unpack_tokens
from pellucid.runner.fake import expected_answer
from tests.engine import helpers
from tests.engine.helpers import message
from tests.engine.prophet import Prophet


def prompt_of(name: str, length: int) -> list[int]:
    return [ord(name[0])] * length


def add(name: str, length: int, **fields: Any) -> AddRequest:
    return message(name, prompt_of(name, length), arrival=time.monotonic(), **fields)


def run(
    messages: Iterable[AddRequest],
    *sinks: Sink,
    detail: bool = False,
    drafting: Drafting | None = None,
    **settings: Any,
) -> EngineCore:
    """Answer `messages`, one more of them queued before each step."""
    engine = helpers.core(**settings)
    engine.scheduler.drafting = drafting
    hub = EventHub(engine.handle)
    for sink in sinks:
        hub.subscribe(sink, detail=detail, tokens=detail)
    left = list(messages)
    while left or engine.has_work:
        if left:
            engine.add(left.pop(0))
        hub.publish(engine.step().events)
    return engine


def crowded() -> list[AddRequest]:
    """Requests that wait for seats, memory and each other, and are preempted."""
    return [add(name, 20, max_tokens=20) for name in ("a", "b", "a2", "c", "d", "e")]


def guessed(messages: Iterable[AddRequest]) -> Drafting:
    """Guesses of their answers, some of which are wrong."""
    prophet = Prophet([3, 0, 2])
    for each in messages:
        prompt = unpack_tokens(each.prompt)
        prophet.texts[each.request_id] = prompt + expected_answer(prompt, 20)
    return Drafting(prophet, most_per_request=3, step_tokens=20)


CROWDED: dict[str, Any] = {"num_blocks": 14, "max_num_seqs": 3, "max_chunk_tokens": 8}


def decoded(frames: Iterable[bytes]) -> list[events.StepEvents]:
    return [events.decode(frame) for frame in frames]


def info() -> EngineInfo:
    return helpers.core().info
