"""The models behind one server, by name: who uses them, and when they come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from pellucid.config import EngineConfig, ServerConfig
from pellucid.errors import (
    BadRequest,
    ConfigError,
    EngineDead,
    ModelBusy,
    ModelNotFound,
    RequestTimeout,
    ShuttingDown,
)
from pellucid.frontend.source import Source
from pellucid.server.exposition import Exposition
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.models.hosted import Engines, Hosted, ModelStatus
from pellucid.server.models.loading import Loader
from pellucid.server.models.room import share_memory
from pellucid.server.observation import Observation
from pellucid.server.reply import unless_gone
from pellucid.server.service import Service

KEEP_ALIVE_SECONDS = 300.0  # of models beside the first, unless set


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
        self.exposition = Exposition(gateway.counts, lambda: self.loaded, lambda: self.names)
        self.observation = Observation(
            config.observe, self.exposition.registry, several=len(offers) > 1
        )
        self._hosted: dict[str, Hosted] = {}
        self._loader = Loader(config.hosting, self.exposition.count_load)
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
                share_memory(engine, source, self._loader.budget, len(offers)),
                config,
                gateway,
                self.observation,
                engines,
                keep_alive=self._keep_alive(is_first=not self._hosted),
                on_idle=self._loader.notify,
                on_lost=self._lost,
            )
        self._loader.models = list(self._hosted.values())
        self.default_name = offers[0][0].name
        if len(set(self.names_and_adapters)) < len(self.names_and_adapters):
            raise ConfigError("lora: an adapter has the name of another model", param="lora")

    # ---- what is there

    @property
    def names(self) -> list[str]:
        """Of all models; requests may also name their adapters."""
        return list(self._hosted)

    @property
    def names_and_adapters(self) -> list[str]:
        """All that a request may name."""
        adapters = (name for hosted in self._hosted.values() for name in hosted.adapters)
        return [*self._hosted, *adapters]

    @property
    def default(self) -> Hosted:
        """The model that answers requests that name none."""
        return self._hosted[self.default_name]

    @property
    def loaded(self) -> Iterator[Service]:
        """Those that could answer at once, in the order of their configuration."""
        return (hosted.service for hosted in self._hosted.values() if hosted.service)

    def listing(self) -> list[ModelStatus]:
        """Every model as it is now, in the order of their configuration, with its adapters."""
        return [
            hosted.status(adapter)
            for hosted in self._hosted.values()
            for adapter in (None, *hosted.adapters)
        ]

    def status(self, name: str) -> ModelStatus:
        """Raises ModelNotFound."""
        hosted = self._find(name)
        return hosted.status(None if name == hosted.name else name)

    def base_of(self, adapter: str) -> Hosted | None:
        """The model that a LoRA adapter is for; None if there is no such adapter."""
        return next((h for h in self._hosted.values() if adapter in h.adapters), None)

    def loaded_service(self, name: str | None) -> Service | None:
        """The model of that name if it is loaded; it may go at any time. Raises ModelNotFound.

        Of an adapter, the model that it is for.
        """
        return self._find(name).service

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
        service = hosted.ready
        if service is None:
            service = await unless_gone(request.receive, self._wait(hosted, timeout))
        return service if name in (None, hosted.name) else service.adapted(name)

    async def ready(self, hosted: Hosted) -> Service:
        """A model's service, once it is loaded. Raises as `take`."""
        return await self._wait(hosted, None)

    async def load(self, name: str, timeout: float | None = None) -> ModelStatus:
        """Load a model, or keep a loaded one for longer. Raises as `take`."""
        hosted = self._find(name)
        await self._wait(hosted, timeout)
        hosted.touch()
        return self.status(name)

    async def unload(self, name: str) -> ModelStatus:
        """Unload a model; one that is not loaded stays so.

        Raises:
            ModelNotFound: the server has no such model.
            BadRequest: it is an adapter.
            ModelBusy: it answers requests, or is being loaded.
        """
        hosted = self._find(name)
        if name != hosted.name:
            raise BadRequest(
                f"{name!r} is a LoRA adapter: see /v1/unload_lora_adapter",
                param="model",
                code="invalid_value",
            )
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
        await self._loader.start(self.default)
        self.default.touch()

    async def close(self, death: EngineDead | None = None) -> None:
        """End all engines, and what looks on. Open answers end with `death`. Idempotent."""
        self._closing = True
        await self._loader.close()
        stopping = [h.stop("the server ends", death) for h in self._hosted.values()]
        await asyncio.gather(*stopping)
        self.observation.close()

    # ---- inside

    def _find(self, name: str | None) -> Hosted:
        hosted = self._hosted.get(self.default_name if name is None else name)
        if hosted is None and name is not None:
            hosted = self.base_of(name)
        if hosted is None:
            names = ", ".join(repr(known) for known in self.names_and_adapters)
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
        """Until `hosted` is loaded. Raises as `take`."""
        if (service := hosted.ready) is not None:  # by now
            return service
        if self._closing:
            raise ShuttingDown("The server is shutting down.")
        longest = hosted.request_timeout
        try:
            async with asyncio.timeout(longest if timeout is None else min(timeout, longest)):
                return await asyncio.shield(self._loader.begin(hosted))
        except TimeoutError:
            raise RequestTimeout(
                f"The request timed out while the model {hosted.name!r} was being loaded.",
                param="timeout",
                code="timeout",
            ) from None

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
