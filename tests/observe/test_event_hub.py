"""Who listens decides what the engine records."""

from __future__ import annotations

from pellucid.frontend.events import EventHub
from pellucid.messages import Observe


def test_the_engine_is_told_of_every_change() -> None:
    told: list[Observe] = []
    hub = EventHub(told.append)
    hub.engine_started()
    assert told == []
    stop_one = hub.subscribe(lambda frame: None)
    stop_two = hub.subscribe(lambda frame: None, detail=True, tokens=True)
    hub.engine_started()
    stop_two()
    stop_two()
    stop_one()
    assert told == [
        Observe(num_listeners=1),
        Observe(num_listeners=2, detail=True, tokens=True),
        Observe(num_listeners=2, detail=True, tokens=True),
        Observe(num_listeners=1),
        Observe(num_listeners=0),
    ]


def test_a_listener_that_fails_is_dropped_and_the_others_go_on() -> None:
    told: list[Observe] = []
    hub = EventHub(told.append)
    got: list[bytes] = []

    def broken(frame: bytes) -> None:
        raise OSError("disk full")

    hub.subscribe(broken)
    hub.subscribe(got.append)
    hub.publish(b"1")
    hub.publish(b"2")
    assert got == [b"1", b"2"]
    assert told[-1] == Observe(num_listeners=1)
