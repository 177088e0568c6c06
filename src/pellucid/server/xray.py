"""What the page's X-ray shows: an engine's steps as they happen, and a load to look at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pellucid.errors import Overloaded, RequestNotFound
from pellucid.observe.machine import Meter, Reading
from pellucid.observe.trace import trace_parts
from pellucid.observe.xray import Feed, Part
from pellucid.server.load import Load
from pellucid.server.models import Models
from pellucid.server.reply import unless_gone
from pellucid.server.service import Service
from pellucid.server.sse import HEADERS, event

WINDOW_SECONDS = 0.1
QUIET_SECONDS = 1.0  # after which a message says that there is no news
MAX_READERS = 8


class Engine(msgspec.Struct):
    """What a stream is about; `is_loaded` is false while the model is not in memory."""

    model: str
    is_loaded: bool
    num_kv_blocks: int = 0
    block_size: int = 0
    max_num_seqs: int = 0
    kernels: str = ""
    dtype: str = ""
    tensor_parallel_size: int = 1


class Message(msgspec.Struct, omit_defaults=True):
    """An event of the stream. `engine` comes first, and again whenever another one was loaded."""

    now: float  # time.monotonic()
    engine: Engine | None = None
    part: Part | None = None
    machine: Reading | None = None  # once a second
    load: Load | None = None  # when it has changed


@dataclass(slots=True)
class Watched:
    """An engine that somebody reads about."""

    feed: Feed
    stop: Callable[[], None]
    num_readers: int = 0


class Xrays:
    """One server's readers of engines, and its load; in `app.state.xrays`."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.num_readers = 0
        self.load: Load | None = None
        self._watched: dict[Service, Watched] = {}
        self._meter = Meter()

    def open(self, name: str | None) -> XrayStream:
        """Watch a model, loaded or not; that does not keep it from being unloaded.

        Raises:
            ModelNotFound: the server has no such model.
            Overloaded: `MAX_READERS` pages are open.
        """
        self.models.loaded_service(name)
        if self.num_readers >= MAX_READERS:
            raise Overloaded(f"{MAX_READERS} readers watch already.", retry_after=QUIET_SECONDS)
        return XrayStream(self, name)

    def export(self, name: str | None) -> StreamingResponse:
        """The last steps of a model as a trace; they are kept while somebody reads about it.

        Raises ModelNotFound, and RequestNotFound where nothing is kept.
        """
        service = self.models.loaded_service(name)
        watched = self._watched.get(service) if service else None
        if service is None or watched is None:
            raise RequestNotFound(
                "No page is open, and steps are kept for this only while one is;"
                " --record and --trace write files of their own.",
                param="model",
                code="nothing_kept",
            )
        return trace_response(trace_parts(watched.feed.kept(), service.llm.model_name))

    async def messages(self, name: str | None) -> AsyncGenerator[Message, None]:
        """Until the server stops. Nobody watches an engine longer than this is read."""
        models = self.models
        watched: Service | None = None
        feed: Feed | None = None
        position: int | None = None
        last, is_first = 0.0, True
        machine: Reading | None = None
        load = _told(self.load) if self.load and not self.load.is_running else None
        with ExitStack() as reading:
            while not models.gateway.draining:
                service, now = models.loaded_service(name), time.monotonic()
                message = Message(now)
                if is_first or service is not watched:
                    reading.close()
                    watched, feed, position = service, None, None
                    if service is not None:
                        feed = reading.enter_context(self._watch(service))
                    message.engine = _describe(name or models.default_name, service)
                elif feed is not None and (part := feed.take(position)) is not None:
                    message.part = part
                    position = part.first + len(part.steps)
                if (now_read := self._read_machine(service)) is not machine:
                    message.machine = machine = now_read
                if self.load is not None and _told(self.load) != load:
                    message.load, load = self.load, _told(self.load)
                is_news = message.engine or message.part or message.machine or message.load
                if is_news or now - last >= QUIET_SECONDS:
                    yield message
                    last, is_first = now, False
                await asyncio.sleep(WINDOW_SECONDS)

    @contextmanager
    def _watch(self, service: Service) -> Iterator[Feed]:
        """The engine's feed, which all its readers share, and which ends with the last of them."""
        watched = self._watched.get(service)
        if watched is None:
            feed = Feed()
            watched = Watched(feed, service.llm.events.subscribe(feed, detail=True))
            self._watched[service] = watched
        watched.num_readers += 1
        try:
            yield watched.feed
        finally:
            watched.num_readers -= 1
            if not watched.num_readers:
                del self._watched[service]
                watched.stop()

    def _read_machine(self, service: Service | None) -> Reading:
        pids = {loaded.llm.model_name: loaded.llm.info.pid for loaded in self.models.loaded}
        has_gpu = service is not None and service.llm.info.device.startswith("cuda")
        return self._meter.read(pids, has_gpu=has_gpu)


class XrayStream(StreamingResponse):
    """Sends messages for as long as somebody reads them.

    A message is made when the one before is sent: a slow reader gets fewer, with more in each.
    """

    media_type = "text/event-stream"

    def __init__(self, xrays: Xrays, name: str | None) -> None:
        self._messages = xrays.messages(name)
        self._xrays = xrays
        super().__init__(self._events(), headers=HEADERS)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        async for message in self._messages:
            yield event(message)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._xrays.num_readers += 1
        try:
            async with aclosing(self._messages):
                await unless_gone(receive, self.stream_response(send))
        finally:
            self._xrays.num_readers -= 1


def trace_response(parts: Iterable[bytes]) -> StreamingResponse:
    """A file for Perfetto, made while it is sent and between other work."""

    async def paced() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
            await asyncio.sleep(0)

    disposition = {"Content-Disposition": 'attachment; filename="pellucid-trace.json"'}
    return StreamingResponse(paced(), media_type="application/json", headers=disposition)


def _told(load: Load) -> tuple[object, ...]:
    """What a load was when it was told."""
    return msgspec.structs.astuple(load)


def _describe(name: str, service: Service | None) -> Engine:
    if service is None:
        return Engine(name, is_loaded=False)
    info = service.llm.info
    return Engine(
        name,
        True,
        info.num_kv_blocks,
        info.block_size,
        service.engine.scheduler.max_num_seqs,
        info.kernels,
        info.dtype,
        info.tensor_parallel_size,
    )
