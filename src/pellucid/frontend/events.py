"""Who listens to the engine's events. Nothing is decoded here: a listener gets the bytes.

>>> stop = llm.events.subscribe(lambda frame: print(decode(frame).step))
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from pellucid.messages import Observe

logger = logging.getLogger(__name__)

Sink = Callable[[bytes], None]  # takes an encoded `engine.events.StepEvents`


@dataclass(eq=False, slots=True)
class _Listener:
    sink: Sink
    detail: bool
    tokens: bool


class EventHub:
    """Hands each step's events to all who asked, and tells the engine whether anybody does.

    Args:
        send: takes the engine's new orders; quiet about an engine that is dead.
    """

    def __init__(self, send: Callable[[Observe], None]) -> None:
        self._send = send
        self._listeners: list[_Listener] = []

    def subscribe(
        self, sink: Sink, *, detail: bool = False, tokens: bool = False
    ) -> Callable[[], None]:
        """Call `sink` on the event loop with each step's events; returns what ends it.

        The first events bring a snapshot. A sink must be quick; one that raises is dropped.

        Args:
            detail: the ids of KV blocks, too.
            tokens: the generated token ids, too.
        """
        listener = _Listener(sink, detail, tokens)
        self._listeners.append(listener)
        self._tell()
        return lambda: self._remove(listener)

    def engine_started(self) -> None:
        """Tell an engine that has just started what is wanted of it."""
        if self._listeners:
            self._tell()

    def publish(self, frame: bytes) -> None:
        for listener in tuple(self._listeners):
            try:
                listener.sink(frame)
            except Exception:  # who watches must never end a stream
                logger.exception("a listener to the engine's events failed and is dropped")
                self._remove(listener)

    def _remove(self, listener: _Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)
            self._tell()

    def _tell(self) -> None:
        listeners = self._listeners
        self._send(
            Observe(
                num_listeners=len(listeners),
                detail=any(listener.detail for listener in listeners),
                tokens=any(listener.tokens for listener in listeners),
            )
        )
