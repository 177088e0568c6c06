"""The LoRA adapters that an engine holds, from the command that loads one to its last request."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from pellucid.engine.request import Request
from pellucid.errors import PellucidError
from pellucid.messages import AdapterOutcome, LoadAdapter
from pellucid.runner.base import AdaptableRunner, Runner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A loaded adapter. The front end gives each load a number of its own."""

    number: int
    name: str
    digest: bytes  # marks the blocks that were computed with it


class Adapters:
    """What requests may name, and what is still there for those that are not done.

    An adapter that is unloaded takes no more requests at once; its memory is free when the last of
    its requests has ended.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._loaded: dict[int, Adapter] = {}
        self._leaving: dict[int, Adapter] = {}

    def __len__(self) -> int:
        return len(self._loaded) + len(self._leaving)

    def find(self, number: int) -> Adapter | None:
        """The adapter of that number, if new requests may have it."""
        return self._loaded.get(number)

    def load(self, command: LoadAdapter) -> AdapterOutcome:
        """Read an adapter; the engine stands still meanwhile. What is wrong is told, not raised."""
        runner, number = self._runner, command.adapter
        if not isinstance(runner, AdaptableRunner):
            return AdapterOutcome(number, error="this runner does not support LoRA adapters")
        try:
            info = runner.load_adapter(number, command.path)
        except (PellucidError, OSError, MemoryError) as error:
            return AdapterOutcome(number, error=str(error) or type(error).__name__)
        self._loaded[number] = Adapter(number, command.name, info.digest)
        return AdapterOutcome(number, info.digest, info.rank, info.num_parameters)

    def unload(self, number: int) -> None:
        """Take no more requests for an adapter; an unknown number is ignored."""
        if adapter := self._loaded.pop(number, None):
            self._leaving[number] = adapter

    def sweep(self, requests: Iterable[Request]) -> None:
        """Free what was unloaded and none of `requests` has any more."""
        if not self._leaving:
            return
        needed = {request.adapter.number for request in requests if request.adapter}
        for number in self._leaving.keys() - needed:
            del self._leaving[number]
            if isinstance(self._runner, AdaptableRunner):
                self._runner.unload_adapter(number)


def names_of(requests: Iterable[Request]) -> list[str]:
    """Of the adapters that any of the requests has, in order."""
    return sorted({request.adapter.name for request in requests if request.adapter})
