"""How a front end reaches an engine: in its own process (offline, tests) or another (serving)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from pellucid.messages import Command, EngineInfo, StepOutput


class EngineClient(Protocol):
    """The front end's only view of an engine."""

    async def start(self) -> EngineInfo:
        """Start the engine; return when it can take requests. Raises ModelError, EngineDead."""
        ...

    def send(self, command: Command) -> None:
        """Hand a command over without waiting. Raises EngineDead once the engine is gone."""
        ...

    def outputs(self) -> AsyncIterator[StepOutput]:
        """Every step's output, in order, until `close`. Raises EngineDead when the engine dies."""
        ...

    @property
    def alive(self) -> bool: ...

    async def close(self) -> None:
        """Stop the engine and release what it holds; idempotent."""
        ...
