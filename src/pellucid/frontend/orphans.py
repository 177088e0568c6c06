"""Requests whose engine died before their first token, on their way to the next engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pellucid.frontend.generation import Generation


class Orphans:
    """Nobody has seen anything of these requests, so another engine can take them.

    Their seeds were drawn by the front end: the answer is the one that the first engine would have
    given. Deadlines are the engine's business everywhere else; here a timer stands in for it.
    """

    def __init__(self, expire: Callable[[Generation], object]) -> None:
        self._expire = expire
        self._timers: dict[Generation, asyncio.TimerHandle | None] = {}

    def add(self, generation: Generation) -> None:
        """Keep `generation` until `take`, or until its deadline calls `expire`."""
        deadline = generation.request.sequences[0].deadline
        timer = None
        if deadline is not None:
            wait = max(0.0, deadline - time.monotonic())
            timer = asyncio.get_running_loop().call_later(wait, self._expire, generation)
        self._timers[generation] = timer

    def take(self) -> list[Generation]:
        """All of them, oldest first; none is left here."""
        orphans = list(self._timers)
        for timer in self._timers.values():
            if timer is not None:
                timer.cancel()
        self._timers.clear()
        return orphans
