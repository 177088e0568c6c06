"""One model of a server: its engine while it is loaded, and who uses it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from pellucid.config import MIB, EngineConfig, LifeSettings, ServerConfig
from pellucid.errors import EngineDead
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.identity import engine_identity
from pellucid.frontend.source import Source
from pellucid.frontend.supervisor import Supervisor, warm_up
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.models.room import estimated_bytes, kv_bytes, taken_bytes
from pellucid.server.observation import Observation
from pellucid.server.service import Service

logger = logging.getLogger(__name__)

MAX_KEEP_ALIVE = 1e9  # seconds; a timer takes no more

State = Literal["unloaded", "loading", "loaded", "failed"]


class ModelStatus(msgspec.Struct, kw_only=True):
    """One model of a server, as it is now. Sizes in bytes, times in Unix seconds."""

    name: str
    source: str  # alias, repository or file name
    parent: str | None = None  # name of the model that this is an adapter for
    state: State  # loading: also while a dead engine is replaced
    size: int  # of its files
    format: str = ""  # see Source
    weights: str = ""
    held: int = 0  # memory: weights, KV pool and the process; 0 unless loaded
    kv_bytes: int = 0
    max_model_len: int | None = None  # known while it is loaded
    loaded_at: float | None = None
    expires_at: float | None = None  # when it is unloaded, if nobody asks; None: not, or not yet
    num_open: int = 0  # requests that use it


class Engines:
    """How models come to run; tests put their own in its place."""

    def __init__(self, life: LifeSettings) -> None:
        self._life = life

    def llm(self, config: EngineConfig) -> AsyncLLM:
        retries = self._life.engine_retries if self._life.engine_restarts else 0
        return AsyncLLM(config, retries=retries)

    def identity(self, llm: AsyncLLM) -> str:
        """What tells the answers of this engine from those of others. Blocking."""
        return engine_identity(llm.config, llm.info)

    def supervisor(self, llm: AsyncLLM, on_restart: Callable[[], None]) -> Supervisor:
        life = self._life
        return Supervisor(llm, life.engine_restarts, warm=life.warm_up, on_restart=on_restart)


class Hosted:
    """A model that can be loaded and unloaded any number of times, on one event loop.

    Args:
        keep_alive: seconds for which it stays when nobody uses it; None for ever.
        on_idle: called whenever it may have become possible to unload it, or it was unloaded.
        on_lost: called with the reason when its engine died for good.
    """

    def __init__(
        self,
        source: Source,
        engine: EngineConfig,
        config: ServerConfig,
        gateway: Gateway,
        observation: Observation,
        engines: Engines,
        *,
        keep_alive: float | None,
        on_idle: Callable[[], None],
        on_lost: Callable[[Hosted, EngineDead], None],
    ) -> None:
        self.source = source
        self.service: Service | None = None  # there while it is loaded
        self.loading: asyncio.Task[Service] | None = None  # what those who want it wait for
        self.stopping: asyncio.Task[None] | None = None  # until its memory is free
        self.held = 0  # bytes of memory, from the begin of loading to the end of unloading
        self.need = estimated_bytes(engine.cache, source)  # bytes; measured once it was loaded
        self.has_failed = False  # its last try to load, or its last engine for good
        self.num_loads = 0
        self.last_used = 0.0  # monotonic
        self._engine = engine
        self._config = config
        self._gateway = gateway
        self._observation = observation
        self._engines = engines
        self._default_keep_alive = self._keep_alive = keep_alive
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._num_leases = 0
        self._loaded_at: float | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._supervisor: Supervisor | None = None
        self._supervising: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def state(self) -> State:
        if self.loading is not None:
            return "loading"
        if self.service is not None:
            reviving = self._supervisor is not None and self._supervisor.reviving
            return "loading" if reviving else "loaded"
        return "failed" if self.has_failed else "unloaded"

    @property
    def ready(self) -> Service | None:
        """What requests may take now; None if it has to be loaded, or is not settled yet."""
        return self.service if self.loading is None else None

    @property
    def is_answering(self) -> bool:
        """It is loaded, and its engine lives."""
        return self.service is not None and self.service.llm.alive and self.state == "loaded"

    @property
    def is_idle(self) -> bool:
        """It is loaded, and could be unloaded without anybody noticing."""
        return self.service is not None and not self.num_open and self.loading is None

    @property
    def num_open(self) -> int:
        """Requests that use it, or wait for it; jobs may outlive their request."""
        return max(self._num_leases, self.service.num_open if self.service else 0)

    @property
    def adapters(self) -> dict[str, str]:
        """Path of each of its LoRA adapters, by name: those that are or will be loaded with it."""
        adapters = self._engine.model.adapters()
        if self.service is None:
            return adapters
        loaded = {adapter.name for adapter in self.service.llm.adapters}
        return {name: path for name, path in adapters.items() if name in loaded}

    def set_adapters(self, adapters: dict[str, str]) -> None:
        """What it will be loaded with from now on."""
        lora = [f"{name}={path}" for name, path in adapters.items()]
        model = msgspec.structs.replace(self._engine.model, lora=lora)
        self._engine = msgspec.structs.replace(self._engine, model=model)

    def status(self, adapter: str | None = None) -> ModelStatus:
        """Its own, or that of one of its adapters, which is there whenever it is."""
        status = self._status()
        if adapter is not None:
            status.name, status.parent = adapter, self.name
            status.source = Path(self.adapters[adapter]).name
        return status

    def _status(self) -> ModelStatus:
        info = self.service.llm.info if self.service else None
        expires = None
        if self._expiry is not None:
            expires = time.time() + self._expiry.when() - asyncio.get_running_loop().time()
        return ModelStatus(
            name=self.name,
            source=self.source.root,
            state=self.state,
            size=self.source.size,
            format=self.source.format,
            weights=self.source.weights,
            held=self.held if self.service else 0,
            kv_bytes=kv_bytes(info) if info else 0,
            max_model_len=self.service.max_model_len if self.service else None,
            loaded_at=self._loaded_at if self.service else None,
            expires_at=expires,
            num_open=self.num_open,
        )

    @property
    def request_timeout(self) -> float:
        """The longest that a request may take, in seconds."""
        return self._engine.scheduler.request_timeout

    # ---- use

    def lease(self) -> None:
        """Somebody uses it, or waits for it: it stays until the same number of `release`."""
        self._num_leases += 1
        self.touch()

    def release(self) -> None:
        self._num_leases -= 1
        self.touch()

    def touch(self) -> None:
        """It was used just now: the time for which it is kept begins anew."""
        self.last_used = time.monotonic()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self.is_idle:
            if self._keep_alive is not None:
                loop = asyncio.get_running_loop()
                self._expiry = loop.call_later(self._keep_alive, self._expire)
            self._on_idle()

    def set_keep_alive(self, seconds: float | None) -> None:
        """Until it is unloaded. None stands for the server's setting; below 0 is for ever."""
        if seconds is None:
            self._keep_alive = self._default_keep_alive
        else:
            self._keep_alive = min(seconds, MAX_KEEP_ALIVE) if seconds >= 0 else None
        self.touch()

    # ---- life

    async def start(self, timeout: float | None) -> Service:
        """Load it. Whoever calls makes room first, and calls `touch` when all is done.

        Raises:
            ModelError, ConfigError, EngineDead: it cannot be loaded; nothing is left running.
            TimeoutError: it took longer than `timeout` seconds.
        """
        if self.stopping is not None:
            await self.stopping
        began, self.held = time.monotonic(), self.need
        llm = self._engines.llm(self._engine)
        try:
            async with asyncio.timeout(timeout):
                service = await self._serve(llm)
        except BaseException:
            self.has_failed = True
            try:
                await llm.close()
            finally:
                self.held = 0
            raise
        self.service, self.has_failed, self._loaded_at = service, False, time.time()
        self.held = self.need = taken_bytes(llm.info)
        self._supervisor = self._engines.supervisor(llm, self._gateway.count_restart)
        self._supervising = asyncio.create_task(self._supervise(self._supervisor))
        logger.info(
            "loaded %s in %.1f s: %d MiB of weights, %d MiB for the KV cache, --speculative %s",
            *(self.name, time.monotonic() - began),
            *(llm.info.weight_bytes // MIB, kv_bytes(llm.info) // MIB, llm.info.speculative),
        )
        if llm.info.draft_model:
            logger.info(
                "%s guesses for it: %d MiB of weights, its keys and values counted above; "
                "a guess and its check take %.2f of a step",
                llm.info.draft_model,
                llm.info.draft_weight_bytes // MIB,
                llm.info.draft_cost,
            )
        return service

    def stop(self, why: str, death: EngineDead | None = None) -> asyncio.Task[None]:
        """Begin to unload it; who asks for it from now on loads it again.

        Open answers, if there are any, end with `death`. Idempotent; await what is returned.
        """
        if self.stopping is None:
            service, self.service = self.service, None
            if service is not None:
                logger.info("unloading %s: %s", self.name, why)
            self._keep_alive = self._default_keep_alive
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            self.stopping = asyncio.create_task(self._stop(service, death))
        return self.stopping

    # ---- inside

    async def _serve(self, llm: AsyncLLM) -> Service:
        await llm.start()
        identity = ""
        if self._gateway.cache is not None:
            identity = await asyncio.to_thread(self._engines.identity, llm)
        if self._gateway.config.life.warm_up:
            await warm_up(llm)
        self.num_loads += 1
        observation = self._observation
        watch = observation.watch(llm, self.num_loads)
        return Service(llm, self._config, self._gateway, observation, watch, identity, self.touch)

    async def _stop(self, service: Service | None, death: EngineDead | None) -> None:
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.gather(self._supervising, return_exceptions=True)
        if service is not None:
            service.close()
            await service.llm.close(death)
        self.held, self.stopping = 0, None
        self._supervisor = self._supervising = None
        self._on_idle()

    async def _supervise(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        except Exception as error:
            logger.critical("%s: %s", self.name, error)
            death = error if isinstance(error, EngineDead) else EngineDead(str(error))
            self.has_failed = True
            self._supervising = None  # or `stop` would cancel what calls it
            await self.stop("its engine cannot be kept alive", death)
            self._on_lost(self, death)

    def _expire(self) -> None:
        self._expiry = None
        if self.is_idle:
            self.stop(f"unused for {self._keep_alive:g} s")
