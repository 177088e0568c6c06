"""Loading models one at a time, each into memory that others may have to leave first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal

from pellucid.config import HostingSettings
from pellucid.errors import ModelUnavailable, PellucidError, ShuttingDown
from pellucid.server.models.hosted import Hosted
from pellucid.server.models.room import budget_of, too_large
from pellucid.server.service import Service

logger = logging.getLogger(__name__)

ROOM_SECONDS = 30.0  # for which a load waits until another model is idle
RETRY_SECONDS = 10.0  # told to those for whom none became idle

Outcome = Literal["loaded", "failed"]


class Loader:
    """Loads what belongs to `models`, within the budget of all of them.

    Args:
        on_outcome: told of every try, with the model's name.
    """

    def __init__(
        self, hosting: HostingSettings, on_outcome: Callable[[str, Outcome], None]
    ) -> None:
        self.models: list[Hosted] = []
        self.budget = budget_of(hosting)  # bytes; None: no limit
        self._load_timeout = hosting.load_timeout
        self._on_outcome = on_outcome
        self._turn = asyncio.Lock()  # memory is what it seems to be only between two loads
        self._freed = asyncio.Event()  # replaced whenever it is set

    def begin(self, hosted: Hosted) -> asyncio.Task[Service]:
        """The one task that loads `hosted`, for all who want it; nobody but `close` cancels it.

        It raises ModelUnavailable or ShuttingDown.
        """
        if hosted.loading is None:
            hosted.loading = asyncio.create_task(self._load(hosted))
            # Perhaps nobody waits any more when it fails.
            hosted.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return hosted.loading

    async def start(self, hosted: Hosted, timeout: float | None = None) -> Service:
        """Load `hosted` where there is room. Raises as `Hosted.start`, and ModelUnavailable."""
        service = await hosted.start(timeout)
        try:
            self._check_size(hosted)  # now that it is known
        except ModelUnavailable as error:
            await hosted.stop(error.message)
            hosted.has_failed = True
            raise
        self._on_outcome(hosted.name, "loaded")
        return service

    def notify(self) -> None:
        """There may be room now for who waits for it."""
        self._freed.set()
        self._freed = asyncio.Event()

    async def close(self) -> None:
        """Give up what is being loaded."""
        tasks = [hosted.loading for hosted in self.models if hosted.loading is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- inside

    async def _load(self, hosted: Hosted) -> Service:
        try:
            return await self._load_into_room(hosted)
        except asyncio.CancelledError:
            raise ShuttingDown("The server is shutting down.") from None
        except Exception as error:
            self._on_outcome(hosted.name, "failed")
            raise self._explained(hosted, error) from None
        finally:
            hosted.loading = None
            hosted.touch()
            self.notify()

    def _explained(self, hosted: Hosted, error: Exception) -> ModelUnavailable:
        """What clients are told of a failure; the log is told the rest."""
        if isinstance(error, ModelUnavailable):
            logger.error("%s", error.message)
            return error
        if isinstance(error, TimeoutError):
            reason = f"took longer than {self._load_timeout:g} s to load"
            logger.error("%s %s", hosted.name, reason)
            return _unavailable(hosted, reason)
        known = isinstance(error, PellucidError | OSError)
        logger.error("%s could not be loaded: %s", hosted.name, error, exc_info=not known and error)
        return _unavailable(hosted, "could not be loaded. The server's log says why")

    async def _load_into_room(self, hosted: Hosted) -> Service:
        deadline = time.monotonic() + ROOM_SECONDS
        while True:
            self._check_size(hosted)
            freed = self._freed  # of before we look, or what is freed meanwhile were missed
            async with self._turn:
                if await self._make_room(hosted):
                    service = await self.start(hosted, self._load_timeout)
                    if await self._make_room(hosted):  # it may take more than was thought
                        return service
                    await hosted.stop("there is no room for it")
            await self._wait(hosted, freed, deadline)

    def _check_size(self, hosted: Hosted) -> None:
        """Raises ModelUnavailable if `hosted` would not fit even if it were alone."""
        if self.budget is not None and hosted.need > self.budget:
            reason = too_large(hosted.name, hosted.need, self.budget)
            raise ModelUnavailable(f"{reason[0].upper()}{reason[1:]}.", code="model_too_large")

    async def _make_room(self, hosted: Hosted) -> bool:
        """Unload what must go, least recently used first; nothing if that would not do."""
        await asyncio.gather(*(other.stopping for other in self.models if other.stopping))
        if self.budget is None:
            return True
        others = [other for other in self.models if other is not hosted]
        excess = sum(other.held for other in others) + hosted.need - self.budget
        leaving = []
        for other in sorted(others, key=lambda other: other.last_used):
            if excess > 0 and other.is_idle:
                leaving.append(other)
                excess -= other.held
        if excess > 0:
            return False
        await asyncio.gather(*(o.stop(f"{hosted.name} needs its memory") for o in leaving))
        return True

    async def _wait(self, hosted: Hosted, freed: asyncio.Event, deadline: float) -> None:
        """Until something was freed. Raises ModelUnavailable, naming what is in the way."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await freed.wait()
        except TimeoutError:
            busy = [repr(other.name) for other in self.models if other is not hosted and other.held]
            raise _unavailable(
                hosted,
                f"does not fit into memory beside {', '.join(busy)}, still in use",
                retry_after=RETRY_SECONDS,
            ) from None


def _unavailable(hosted: Hosted, reason: str, retry_after: float | None = None) -> ModelUnavailable:
    return ModelUnavailable(
        f"The model {hosted.name!r} {reason}.",
        param="model",
        code="model_unavailable",
        retry_after=retry_after,
    )
