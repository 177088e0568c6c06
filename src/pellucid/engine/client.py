"""How a front end reaches an engine: in its own process (offline, tests) or another (serving)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.engine.grammars import GRAMMAR_POLL
from pellucid.engine.link import FrontEnd
from pellucid.errors import ConfigError, EngineDead, ModelError
from pellucid.messages import (
    Command,
    EngineFailed,
    EngineInfo,
    StepOutput,
)


class EngineClient(Protocol):
    """The front end's only view of an engine."""

    async def start(self) -> EngineInfo:
        """Start the engine; return when it can take requests.

        Raises ModelError or ConfigError if it cannot serve the model, EngineDead if it crashed.
        """
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


class InProcessClient:
    """An engine on the caller's own event loop, which stands still during a step."""

    def __init__(self, make_core: Callable[[], EngineCore]) -> None:
        self._make_core = make_core
        self._core: EngineCore | None = None
        self._wake = asyncio.Event()
        self._failure: str | None = None
        self._closed = False

    @classmethod
    def from_config(cls, config: EngineConfig) -> InProcessClient:
        def make_core() -> EngineCore:
            from pellucid.runner.factory import create_runner

            return create_core(create_runner(config), config.cache, config.scheduler)

        return cls(make_core)

    @property
    def alive(self) -> bool:
        return self._core is not None and self._failure is None and not self._closed

    async def start(self) -> EngineInfo:
        self._core = await asyncio.to_thread(self._make_core)
        return self._core.info

    def send(self, command: Command) -> None:
        self._living_core().handle(command)
        self._wake.set()

    async def outputs(self) -> AsyncIterator[StepOutput]:
        while not self._closed:
            core = self._living_core()
            if not core.has_work:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GRAMMAR_POLL if core.is_compiling else None):
                        await self._wake.wait()
                continue
            try:
                output = core.step()
            except Exception as error:
                self._failure = f"{type(error).__name__}: {error}"
                raise EngineDead(f"the engine failed: {self._failure}") from error
            yield output
            await asyncio.sleep(0)  # let consumers run between steps

    async def close(self) -> None:
        if self._core is not None and not self._closed:
            self._core.runner.close()
        self._closed = True
        self._wake.set()

    def _living_core(self) -> EngineCore:
        if self._core is None or self._closed:
            raise EngineDead("the engine is not running")
        if self._failure is not None:
            raise EngineDead(f"the engine failed: {self._failure}")
        return self._core


def offline_client(config: EngineConfig, *, in_process: bool = True) -> EngineClient:
    """An engine for who has no server: in this process, or in one of its own.

    That of several ranks has one of its own in any case: it is ended when another rank dies.
    """
    if in_process and config.runner.tensor_parallel_size == 1:
        return InProcessClient.from_config(config)
    return ProcessClient(config)


class ProcessClient:
    """An engine in a process of its own, see `engine/process.py`. Linux and macOS."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._link: FrontEnd | None = None
        self._exit: asyncio.Task[int] | None = None
        self._failure: str | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        return (
            self._exit is not None
            and not self._exit.done()
            and self._failure is None
            and not self._closed
        )

    async def start(self) -> EngineInfo:
        try:
            await self._spawn()
            event = await self._receive()
        except BaseException:
            await self.close()
            raise
        if not isinstance(event, EngineInfo):
            await self.close()
            raise EngineDead("the engine spoke before it was ready")
        return event

    def send(self, command: Command) -> None:
        if self._link is None or not self.alive:
            raise EngineDead(self._epitaph())
        self._link.send(command)

    async def outputs(self) -> AsyncIterator[StepOutput]:
        while not self._closed:
            try:
                event = await self._receive()
            except EngineDead:
                if self._closed:  # it was told to stop
                    return
                raise
            if isinstance(event, StepOutput):
                yield event

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._process is not None and self._exit is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()  # the engine takes the end of its stdin as "stop"
            try:
                await asyncio.wait_for(asyncio.shield(self._exit), timeout=5.0)
            except TimeoutError:
                self._process.kill()
                await self._exit
        if self._link is not None:
            self._link.close()

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:  # the engine's copy has to be the only one, or its death would not be heard
            self._link = await FrontEnd.open(ours)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pellucid.engine.process",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the front end, which then stops the engine
            )
        self._exit = asyncio.create_task(self._process.wait())
        stdin = self._process.stdin
        if stdin is None:
            raise EngineDead("the engine has no stdin")
        # If it has died already, _receive will tell; uvloop's pipe raises RuntimeError then.
        with contextlib.suppress(ConnectionError, RuntimeError):
            stdin.write(msgspec.json.encode(self._config) + b"\n")
            await stdin.drain()

    async def _receive(self) -> EngineInfo | StepOutput:
        """The next event. Raises what EngineFailed stands for, or EngineDead at the end."""
        if self._link is None or self._exit is None:
            raise EngineDead("the engine is not running")
        try:
            event = await self._link.receive()
        except (EOFError, ConnectionError):
            # The process closes its end by dying; only then is there an exit status to tell.
            await asyncio.wait({self._exit}, timeout=1.0)
            raise EngineDead(self._epitaph()) from None
        if isinstance(event, EngineFailed):
            self._failure = event.message
            if event.kind == "model":
                raise ModelError(event.message)
            if event.kind == "config":
                raise ConfigError(event.message)
            raise EngineDead(self._epitaph())
        return event

    def _epitaph(self) -> str:
        if self._closed or self._exit is None:
            return "the engine is not running"
        if self._failure is not None:
            return f"the engine failed: {self._failure}"
        code = self._exit.result() if self._exit.done() else None
        return f"the engine process died (exit status {code})"
