"""A recording behind the page: what `pellucid xray FILE` serves. No engine, loopback alone."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pellucid.errors import BadRequest, PellucidError
from pellucid.observe.replay import Replay, Start
from pellucid.observe.trace import trace_parts
from pellucid.server.envelope import Envelope
from pellucid.server.errors import on_http_exception, on_pellucid_error
from pellucid.server.observation import Timeline
from pellucid.server.page import Page
from pellucid.server.reply import json_response
from pellucid.server.run import bind, url_of
from pellucid.server.xray import Engine, trace_response

HOST = "127.0.0.1"


class Recorded(msgspec.Struct):
    """What the page is told of a file; times are the recorded `time.monotonic()`."""

    engine: Engine
    pellucid: str  # version that recorded it
    unix_time: float  # at `begin`
    begin: float
    end: float
    num_steps: int
    num_cut: int  # bytes at the end that are no whole step: the server was killed
    starts: list[Start]


def serve_recording(replay: Replay, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the page with a recording until SIGINT or SIGTERM.

    Raises:
        ConfigError: the port is taken.
    """
    with bind(HOST, port) as listener:
        settings = uvicorn.Config(
            build_replay_app(replay),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        _Server(settings, lambda: on_ready(url_of(listener))).run(sockets=[listener])


def build_replay_app(replay: Replay) -> Starlette:
    async def recording(request: Request) -> Response:
        return json_response(_describe(replay))

    async def steps(request: Request) -> Response:
        return json_response(replay.chunk(_number(request.query_params.get("chunk"))))

    async def export(request: Request) -> Response:
        return trace_response(trace_parts(replay.steps(), replay.header.model))

    async def timeline(request: Request) -> Response:
        return json_response(_timeline(replay, request.path_params["id"]))

    return Starlette(
        routes=[
            Route("/xray/recording", recording),
            Route("/xray/steps", steps),
            Route("/xray/export", export),
            Route("/v1/requests/{id:path}/timeline", timeline),
        ],
        exception_handlers={PellucidError: on_pellucid_error, HTTPException: on_http_exception},
        middleware=[
            Middleware(Envelope),
            # A page from elsewhere could give its own name to this address, and read the file.
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
            Middleware(Page, is_replay=True),
        ],
    )


class _Server(uvicorn.Server):
    """Tells when it listens, and ends without raising the signal once more."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def _describe(replay: Replay) -> Recorded:
    header = replay.header
    engine = Engine(
        header.model,
        is_loaded=True,
        num_kv_blocks=header.num_kv_blocks,
        block_size=header.block_size,
        kernels=header.kernels,
        dtype=header.dtype,
    )
    return Recorded(
        engine,
        header.pellucid,
        _unix_time(replay, replay.begin),
        replay.begin,
        replay.end,
        replay.num_steps,
        replay.num_cut,
        replay.starts,
    )


def _timeline(replay: Replay, request_id: str) -> Timeline:
    life, answer = replay.timeline(request_id)
    queued = life.queued.time
    end = life.finished.time if life.finished else replay.end
    return Timeline(
        request_id,
        request_id,
        "",  # HTTP is not recorded
        _unix_time(replay, queued),
        end - queued,
        life.finished is None,
        None,
        [answer],
    )


def _unix_time(replay: Replay, when: float) -> float:
    return replay.header.unix_time + when - replay.header.monotonic


def _number(text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise BadRequest(f"chunk must be a number, got {text!r}", param="chunk") from None
