"""The models behind one server: which of them are loaded, and who has to make room for whom."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from pellucid.config import EngineConfig, ServerConfig
from pellucid.errors import (
    ConfigError,
    EngineDead,
    ModelBusy,
    ModelNotFound,
    ModelUnavailable,
    PellucidError,
    RequestTimeout,
    ShuttingDown,
)
from pellucid.frontend.source import Source
from pellucid.server.exposition import Exposition
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.models.hosted import Engines, Hosted, ModelStatus
from pellucid.server.models.room import budget_of, share_memory, too_large
from pellucid.server.observation import Observation
from pellucid.server.reply import unless_gone
from pellucid.server.service import Service

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 300.0  # of models beside the first, unless set
ROOM_SECONDS = 30.0  # for which a load waits until another model is idle
RETRY_SECONDS = 10.0  # told to those who were not lucky


class Models:
    """What is served; in `app.state.models`. Belongs to one event loop.

    Args:
        offers: where each model comes from, and its engine's settings; the first model answers
            requests that name none.

    Raises:
        ConfigError: two models have one name, or one is larger than the budget.
    """

    def __init__(
        self,
        offers: Sequence[tuple[Source, EngineConfig]],
        config: ServerConfig,
        gateway: Gateway,
        engines: Engines | None = None,
    ) -> None:
        self.config = config
        self.gateway = gateway
        self.created = int(time.time())
        self.failure: EngineDead | None = None  # there is nothing left to serve
        self.failed = asyncio.Event()
        self._budget = budget_of(config.hosting)
        self._load_timeout = config.hosting.load_timeout
        self.exposition = Exposition(gateway.counts, lambda: self.loaded, lambda: self.names)
        self.observation = Observation(
            config.observe, self.exposition.registry, several=len(offers) > 1
        )
        self._hosted: dict[str, Hosted] = {}
        self._loads = asyncio.Lock()  # one model is loaded at a time
        self._freed = asyncio.Event()  # replaced whenever it is set
        self._closing = False
        engines = engines or Engines(gateway.config.life)
        for source, engine in offers:
            if source.name in self._hosted:
                raise ConfigError(
                    f"model: two are called {source.name!r}; give one another name, NAME=SOURCE",
                    param="model",
                )
            self._hosted[source.name] = Hosted(
                source,
                share_memory(engine, source, self._budget, len(offers)),
                config,
                gateway,
                self.observation,
                engines,
                keep_alive=self._keep_alive(is_first=not self._hosted),
                on_idle=self._room_may_be,
                on_lost=self._lost,
            )
        self.default_name = offers[0][0].name

    # ---- what is there

    @property
    def names(self) -> list[str]:
        """All that a request may name."""
        return list(self._hosted)

    @property
    def default(self) -> Hosted:
        """The model that answers requests that name none."""
        return self._hosted[self.default_name]

    @property
    def loaded(self) -> Iterator[Service]:
        """Those that could answer at once, in the order of their configuration."""
        return (hosted.service for hosted in self._hosted.values() if hosted.service)

    def listing(self) -> list[ModelStatus]:
        """Every model as it is now, in the order of their configuration."""
        return [hosted.status() for hosted in self._hosted.values()]

    def status(self, name: str) -> ModelStatus:
        """Raises ModelNotFound."""
        return self._find(name).status()

    @property
    def is_ready(self) -> bool:
        """The default model answers, or would be loaded again for whoever asks."""
        default = self.default
        return default.is_answering if default.service else not default.has_failed

    # ---- use

    async def take(
        self, request: Request, name: str | None, timeout: float | None = None
    ) -> Service:
        """The model that `request` names, ready to answer it, and kept until the request ends.

        Loads it if need be: the request's body must have been read.

        Args:
            timeout: seconds after which the request no longer waits for that.

        Raises:
            ModelNotFound: the server has no such model.
            ModelUnavailable: it cannot be loaded, or there is no room for it.
            RequestTimeout, ClientGone: the request did not wait for the end of loading.
        """
        hosted = self._find(name)
        hosted.lease()
        request.scope["state"].setdefault("leases", []).append(hosted)
        if (service := hosted.ready) is not None:
            return service
        return await unless_gone(request.receive, self._wait(hosted, timeout))

    async def load(self, name: str, timeout: float | None = None) -> ModelStatus:
        """Load a model, or keep a loaded one for longer. Raises as `take`."""
        hosted = self._find(name)
        await self._wait(hosted, timeout)
        hosted.touch()
        return hosted.status()

    async def unload(self, name: str) -> ModelStatus:
        """Unload a model; one that is not loaded stays so.

        Raises:
            ModelNotFound: the server has no such model.
            ModelBusy: it answers requests, or is being loaded.
        """
        hosted = self._find(name)
        if hosted.loading is not None:
            raise ModelBusy(
                f"The model {name!r} is being loaded.", param="model", code="model_busy"
            )
        if hosted.num_open:
            raise ModelBusy(
                f"The model {name!r} has {hosted.num_open} open requests.",
                param="model",
                code="model_busy",
            )
        await hosted.stop("it was asked for")
        return hosted.status()

    def set_keep_alive(self, name: str, seconds: float | None) -> None:
        """Keep an idle model for so long, until it is unloaded; below 0 for ever, 0 not at all.

        None stands for the server's setting. Raises ModelNotFound.
        """
        self._find(name).set_keep_alive(seconds)

    # ---- life

    async def start(self) -> None:
        """Load the first model. Raises ModelError, ConfigError or EngineDead."""
        await self._start(self.default, None)
        self.exposition.count_load(self.default_name, "loaded")
        self.default.touch()

    async def close(self, death: EngineDead | None = None) -> None:
        """End all engines, and what looks on. Open answers end with `death`. Idempotent."""
        self._closing = True
        loading = [hosted.loading for hosted in self._hosted.values() if hosted.loading]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        stopping = [h.stop("the server ends", death) for h in self._hosted.values()]
        await asyncio.gather(*stopping)
        self.observation.close()

    # ---- inside

    def _find(self, name: str | None) -> Hosted:
        hosted = self._hosted.get(self.default_name if name is None else name)
        if hosted is None:
            names = ", ".join(repr(known) for known in self._hosted)
            raise ModelNotFound(
                f"The model {name!r} does not exist; this server has {names}.",
                param="model",
                code="model_not_found",
            )
        return hosted

    def _keep_alive(self, *, is_first: bool) -> float | None:
        seconds = self.config.hosting.keep_alive
        if seconds is None:
            return None if is_first else KEEP_ALIVE_SECONDS
        return seconds if seconds >= 0 else None

    async def _wait(self, hosted: Hosted, timeout: float | None) -> Service:
        """Until `hosted` is loaded; all who want it wait for one task, which nobody cancels."""
        if (service := hosted.ready) is not None:  # by now
            return service
        if self._closing:
            raise ShuttingDown("The server is shutting down.")
        if hosted.loading is None:
            hosted.loading = asyncio.create_task(self._load(hosted))
            hosted.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        longest = hosted.request_timeout
        try:
            async with asyncio.timeout(longest if timeout is None else min(timeout, longest)):
                return await asyncio.shield(hosted.loading)
        except TimeoutError:
            raise RequestTimeout(
                f"The request timed out while the model {hosted.name!r} was being loaded.",
                param="timeout",
                code="timeout",
            ) from None

    async def _load(self, hosted: Hosted) -> Service:
        """Raises ModelUnavailable, ShuttingDown."""
        outcome: Literal["loaded", "failed"] = "failed"
        try:
            service = await self._load_into_room(hosted)
            outcome = "loaded"
            return service
        except asyncio.CancelledError:
            raise ShuttingDown("The server is shutting down.") from None
        except ModelUnavailable:
            raise
        except TimeoutError:
            reason = f"took longer than {self._load_timeout:g} s to load"
            logger.error("%s %s", hosted.name, reason)
            raise _unavailable(hosted.name, reason) from None
        except Exception as error:
            known = isinstance(error, PellucidError | OSError)
            logger.error("%s could not be loaded: %s", hosted.name, error, exc_info=not known)
            reason = "could not be loaded. The server's log says why"
            raise _unavailable(hosted.name, reason) from None
        finally:
            self.exposition.count_load(hosted.name, outcome)
            hosted.loading = None
            hosted.touch()
            self._room_may_be()

    async def _load_into_room(self, hosted: Hosted) -> Service:
        deadline = time.monotonic() + ROOM_SECONDS
        while True:
            freed = self._freed
            self._check_size(hosted)
            async with self._loads:
                if await self._make_room(hosted):
                    service = await self._start(hosted, self._load_timeout)
                    if await self._make_room(hosted):  # it may take more than was thought
                        return service
                    await hosted.stop("there is no room for it")
            await self._room(hosted, freed, deadline)

    async def _start(self, hosted: Hosted, timeout: float | None) -> Service:
        service = await hosted.start(timeout)
        try:
            self._check_size(hosted)  # now that it is known
        except ModelUnavailable as error:
            await hosted.stop(error.message)
            hosted.has_failed = True
            raise
        return service

    def _check_size(self, hosted: Hosted) -> None:
        """Raises ModelUnavailable if `hosted` would not fit even if it were alone."""
        if self._budget is not None and hosted.need > self._budget:
            reason = too_large(hosted.name, hosted.need, self._budget)
            raise ModelUnavailable(f"{reason[0].upper()}{reason[1:]}.", code="model_too_large")

    async def _make_room(self, hosted: Hosted) -> bool:
        """Unload what must go, least recently used first; nothing if that would not do."""
        await asyncio.gather(*(h.stopping for h in self._hosted.values() if h.stopping))
        if self._budget is None:
            return True
        others = [other for other in self._hosted.values() if other is not hosted]
        excess = sum(other.held for other in others) + hosted.need - self._budget
        leaving = []
        for other in sorted(others, key=lambda other: other.last_used):
            if excess > 0 and other.is_idle:
                leaving.append(other)
                excess -= other.held
        if excess > 0:
            return False
        await asyncio.gather(*(o.stop(f"{hosted.name} needs its memory") for o in leaving))
        return True

    async def _room(self, hosted: Hosted, freed: asyncio.Event, deadline: float) -> None:
        """Until something was freed. Raises ModelUnavailable, naming what is in the way."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await freed.wait()
        except TimeoutError:
            busy = [h.name for h in self._hosted.values() if h is not hosted and h.held]
            raise _unavailable(
                hosted.name,
                f"does not fit into memory beside {', '.join(map(repr, busy))}, still in use",
                retry_after=RETRY_SECONDS,
            ) from None

    def _room_may_be(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()

    def _lost(self, hosted: Hosted, death: EngineDead) -> None:
        if len(self._hosted) == 1:
            self.failure = death
            self.failed.set()


class Leases:
    """ASGI middleware: what a request took of `Models` is given back when it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            for hosted in scope.get("state", {}).pop("leases", ()):
                hosted.release()


def _unavailable(name: str, reason: str, retry_after: float | None = None) -> ModelUnavailable:
    return ModelUnavailable(
        f"The model {name!r} {reason}.",
        param="model",
        code="model_unavailable",
        retry_after=retry_after,
    )
