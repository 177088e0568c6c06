"""Runs of an engine with a fake model, seen through the event hub."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from pellucid.engine import events
from pellucid.engine.core import EngineCore
from pellucid.frontend.events import EventHub, Sink
from pellucid.messages import AddRequest, EngineInfo
from tests.engine import helpers
from tests.engine.helpers import message


def prompt_of(name: str, length: int) -> list[int]:
    return [ord(name[0])] * length


def add(name: str, length: int, **fields: Any) -> AddRequest:
    return message(name, prompt_of(name, length), arrival=time.monotonic(), **fields)


def run(
    messages: Iterable[AddRequest], *sinks: Sink, detail: bool = False, **settings: Any
) -> EngineCore:
    """Answer `messages`, one more of them queued before each step."""
    engine = helpers.core(**settings)
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


CROWDED: dict[str, Any] = {"num_blocks": 14, "max_num_seqs": 3, "max_chunk_tokens": 8}


def decoded(frames: Iterable[bytes]) -> list[events.StepEvents]:
    return [events.decode(frame) for frame in frames]


def info() -> EngineInfo:
    return helpers.core().info
