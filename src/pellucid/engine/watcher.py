"""Who is told what a scheduler does; see `engine/recorder.py`."""

from __future__ import annotations

from typing import Protocol

from pellucid.engine.request import Request
from pellucid.messages import FinishReason


class Watcher(Protocol):
    """Is told what cannot be read off a step's plan and result."""

    def entered(self, request: Request) -> None: ...

    def admitted(self, request: Request, num_found: int, *, is_return: bool) -> None: ...

    def preempted(self, request: Request) -> None:
        """Its blocks are still in its table."""

    def finished(self, request: Request, reason: FinishReason) -> None:
        """Its blocks are still in its table."""
