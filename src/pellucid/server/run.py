"""Serving: an engine, an HTTP server around it, and a tidy end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from pellucid.config import EngineConfig, GatewayConfig, ServerConfig
from pellucid.errors import ConfigError, ShuttingDown
from pellucid.frontend.source import find_source
from pellucid.server.app import build_app
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.gateway.tls import check_certificate
from pellucid.server.http_protocol import http_protocol
from pellucid.server.models import Models
from pellucid.server.models.adapters import check_folder

logger = logging.getLogger(__name__)

FAREWELL_SECONDS = 2  # for telling requests that cannot finish that they will not
KEEP_ALIVE_SECONDS = 65  # above the 60 s after which common proxies drop an idle connection
MAX_HEAD_BYTES = 64 * 1024  # request line and headers

OnReady = Callable[[str], None]


def serve(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    on_ready: OnReady | None = None,
    gateway_config: GatewayConfig | None = None,
    *,
    others: Sequence[EngineConfig] = (),
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        engine_config: of the model that is loaded at once, and answers who names none.
        on_ready: called with the URL once the engine can answer.
        others: of models that are loaded when they are asked for.

    Raises:
        ConfigError: the address cannot be listened on, or a setting does not suit the model.
        ModelError: the model cannot be loaded.
        EngineDead: the engine crashed while it started, or too often later.
    """
    gateway_config = gateway_config or GatewayConfig()
    check_certificate(gateway_config.access)
    listener = bind(server_config.host, server_config.port)
    with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(
            _serve([engine_config, *others], server_config, gateway_config, listener, on_ready)
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket on the address; it refuses connections until the server listens.

    Raises:
        ConfigError: the host is unknown, or the port is taken or not ours to take.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}", param="host") from None
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it, the end of an
    # answer waits until the client acknowledges its beginning: 40 ms.
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL of a bound socket, with the real port where 0 was asked for."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn around started models, with word of when it listens and an end of our own."""

    def __init__(self, models: Models, on_listening: Callable[[], None]) -> None:
        self._models = models
        self._gateway = models.gateway
        access, limits = self._gateway.config.access, self._gateway.config.limits
        self.app = build_app(models)
        settings = uvicorn.Config(
            self.app,
            http=http_protocol(MAX_HEAD_BYTES, limits.head_timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="debug" if models.config.log_level == "debug" else "warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FAREWELL_SECONDS,
            ssl_certfile=access.ssl_certfile,
            ssl_keyfile=access.ssl_keyfile,
        )
        super().__init__(settings)
        self._on_listening = on_listening
        self._ending: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Let open answers finish, then end; called again, it does not wait for them."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())
        else:
            self.force_exit = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    async def _end(self) -> None:
        """Listening goes on meanwhile, so that who comes now is told and not just cut off."""
        if count := self._gateway.num_active:
            seconds = self._gateway.config.life.drain_timeout
            logger.warning(
                "%d open requests have %g s to finish; a second signal ends them", count, seconds
            )
        if not await self._gateway.drain():
            await self._models.close(ShuttingDown("The server is shutting down."))
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises a signal again when it ends: too early, the engine still runs then."""
        yield


async def _serve(
    engine_configs: Sequence[EngineConfig],
    server_config: ServerConfig,
    gateway_config: GatewayConfig,
    listener: socket.socket,
    on_ready: OnReady | None,
) -> None:
    gateway = Gateway(gateway_config)
    if gateway.keys.is_open and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        logger.warning("listening on %s without an API key: anyone may ask", server_config.host)
    starting = asyncio.create_task(_start(engine_configs, server_config, gateway))
    _on_signals(starting.cancel)
    try:
        await asyncio.wait({starting})
        if starting.cancelled():
            return
        models = starting.result()
        url = url_of(listener, "https" if gateway_config.access.ssl_certfile else "http")

        def announce() -> None:
            logger.info("serving %s on %s", ", ".join(models.names), url)
            if on_ready is not None:
                on_ready(url)

        server = Server(models, announce)
        _on_signals(server.stop)
        gc.collect()
        gc.freeze()  # what lives until the end need not be visited by every collection
        try:
            await _serve_while_there_are_models(server, listener, models)
        finally:
            await models.close()
    except OSError as error:  # another server bound the same port and listened first
        raise _cannot_listen(server_config.host, server_config.port, error) from None
    finally:
        await gateway.close()


async def _start(
    engine_configs: Sequence[EngineConfig], config: ServerConfig, gateway: Gateway
) -> Models:
    """All models, the first of them loaded. Raises ModelError, ConfigError or EngineDead."""
    offers = [
        (await asyncio.to_thread(find_source, engine.model, engine.draft()), engine)
        for engine in engine_configs
    ]
    check_folder(config.hosting.allow_lora_updates)
    models = Models(offers, config, gateway)
    try:
        await models.start()
    except BaseException:
        await models.close()
        raise
    return models


async def _serve_while_there_are_models(
    server: Server, listener: socket.socket, models: Models
) -> None:
    """Serve until `server` stops. Raises EngineDead if its only model cannot be kept alive."""

    async def watch() -> None:
        await models.failed.wait()
        server.should_exit = True

    watching = asyncio.create_task(watch())
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        await asyncio.wait({watching})
    if models.failure is not None:
        raise models.failure


def _on_signals(action: Callable[[], object]) -> None:
    """Let SIGINT and SIGTERM call `action` from now on. Only a main thread gets signals."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, action)


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        reason = "the port is in use; choose another, or 0 for any free one"
    return ConfigError(f"cannot listen on {host} port {port}: {reason}", param="port")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
