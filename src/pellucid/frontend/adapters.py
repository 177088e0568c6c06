"""The LoRA adapters of one model, by name, as the front end knows them.

An adapter gets a number with each load, under which requests name it to the engine: a name that is
unloaded and loaded again is another adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pellucid.errors import BadRequest, EngineDead, ModelError, ModelNotFound
from pellucid.messages import AdapterOutcome, Command, LoadAdapter, UnloadAdapter

logger = logging.getLogger(__name__)

MAX_ADAPTERS = 256  # of a model


@dataclass(frozen=True, slots=True)
class Adapter:
    """A loaded adapter. Those of equal digests give equal answers."""

    name: str
    path: str
    number: int
    digest: str = ""
    rank: int = 0
    num_parameters: int = 0


class Adapters:
    """Loads and unloads; outlives the engines that hold the adapters.

    Args:
        send: hands a command to the engine; raises EngineDead.
    """

    def __init__(self, send: Callable[[Command], None]) -> None:
        self._send = send
        self._by_name: dict[str, Adapter] = {}
        self._waiting: dict[int, asyncio.Future[AdapterOutcome]] = {}
        self._loading: set[str] = set()
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._by_name.values())

    def find(self, name: str) -> Adapter:
        """Raises ModelNotFound."""
        adapter = self._by_name.get(name)
        if adapter is None:
            raise ModelNotFound(
                f"The adapter {name!r} is not loaded.", param="model", code="model_not_found"
            )
        return adapter

    async def load(self, name: str, path: str) -> Adapter:
        """Load an adapter; the engine stands still while it reads the file.

        Raises:
            BadRequest: the name is taken, or there are too many.
            ModelError: the engine cannot use it; the message says why.
            EngineDead: there is no engine.
        """
        if name in self._by_name or name in self._loading:
            raise BadRequest(
                f"lora_name {name!r} is loaded already", param="lora_name", code="invalid_value"
            )
        if len(self._by_name) + len(self._loading) >= MAX_ADAPTERS:
            raise BadRequest(
                f"lora_name: a model has at most {MAX_ADAPTERS} adapters",
                param="lora_name",
                code="invalid_value",
            )
        wanted = Adapter(name, path, next(self._numbers))
        self._loading.add(name)
        try:
            adapter = await self._outcome(wanted, self._begin(wanted))
        except asyncio.CancelledError:  # nobody would know that it is there
            self._forget(wanted)
            raise
        finally:
            self._loading.discard(name)
        self._by_name[name] = adapter
        return adapter

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter; those that have it go on. Raises ModelNotFound."""
        adapter = self.find(name)
        del self._by_name[name]
        self._forget(adapter)

    def check(self, number: int) -> None:
        """Raises ModelNotFound if an adapter was unloaded after a request had found it."""
        if all(adapter.number != number for adapter in self):
            raise ModelNotFound("The adapter was unloaded.", param="model", code="model_not_found")

    # ---- the engine's side

    def take(self, outcomes: Sequence[AdapterOutcome]) -> None:
        """What came of loads."""
        for outcome in outcomes:
            future = self._waiting.pop(outcome.adapter, None)
            if future is not None and not future.done():
                future.set_result(outcome)

    def engine_died(self, death: EngineDead) -> None:
        """Whoever waits for a load is told."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(type(death)(death.message))
        self._waiting.clear()

    async def load_again(self) -> None:
        """Give a new engine what the one before had; what it cannot read any more is dropped.

        Raises EngineDead.
        """
        # All at once: a request that comes meanwhile finds its adapter before it in the socket.
        begun = [(adapter, self._begin(adapter)) for adapter in self]
        for adapter, future in begun:
            try:
                found = await self._outcome(adapter, future)
            except ModelError as error:
                logger.error("dropped: %s", error)
                found = None
            known = self._by_name.get(adapter.name)
            if known is not None and known.number == adapter.number:
                del self._by_name[adapter.name]
                if found is not None:
                    self._by_name[adapter.name] = found

    # ---- inside

    def _begin(self, adapter: Adapter) -> asyncio.Future[AdapterOutcome]:
        future: asyncio.Future[AdapterOutcome] = asyncio.get_running_loop().create_future()
        self._waiting[adapter.number] = future
        self._send(LoadAdapter(adapter=adapter.number, name=adapter.name, path=adapter.path))
        return future

    def _forget(self, adapter: Adapter) -> None:
        with contextlib.suppress(EngineDead):  # a dead engine has none
            self._send(UnloadAdapter(adapter=adapter.number))

    async def _outcome(self, adapter: Adapter, future: asyncio.Future[AdapterOutcome]) -> Adapter:
        outcome = await future
        if outcome.error is not None:
            raise ModelError(f"LoRA adapter {adapter.name!r}: {outcome.error}")
        logger.info(
            "loaded the LoRA adapter %s: rank %d, %.1f million parameters",
            *(adapter.name, outcome.rank, outcome.num_parameters / 1e6),
        )
        return replace(
            adapter,
            digest=outcome.digest.hex(),
            rank=outcome.rank,
            num_parameters=outcome.num_parameters,
        )
