"""What the page's X-ray shows: an engine's steps as they happen, and a load to look at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pellucid.errors import BadRequest, Overloaded
from pellucid.observe.xray import Window, Xray
from pellucid.server.models import Models
from pellucid.server.protocol import GenerateRequest
from pellucid.server.reply import unless_gone
from pellucid.server.service import Service
from pellucid.server.sse import HEADERS, event

WINDOW_SECONDS = 0.1
QUIET_SECONDS = 1.0  # after which a message says that there is no news
MAX_READERS = 8
LOAD_TOKENS = 96  # of each answer

PREAMBLE = (
    "You are the keeper of a lighthouse, and you tell a story to everyone who climbs up to the "
    "lamp. Your stories are short, they begin in the middle, and they are about a thing that you "
    "have seen from up there. Visitors write down what they hear, so speak in whole sentences.\n\n"
)
SEEN = ("a ship", "a storm", "a whale", "a balloon", "an island", "a letter", "a comet", "a thief")
WHEN = ("in a winter night", "at dawn", "when nobody looked", "on the longest day of the year")


class Engine(msgspec.Struct):
    """What a stream is about; `is_loaded` is false while the model is not in memory."""

    model: str
    is_loaded: bool
    num_kv_blocks: int = 0
    block_size: int = 0
    max_num_seqs: int = 0
    kernels: str = ""
    dtype: str = ""


class Message(msgspec.Struct, omit_defaults=True):
    """An event of the stream. `engine` comes first, and again whenever another one was loaded."""

    now: float  # time.monotonic()
    engine: Engine | None = None
    window: Window | None = None


class LoadRuns(BadRequest):
    """Somebody has started a load, and it has not ended."""

    status = 409


class Xrays:
    """One server's readers of engines, and its load; in `app.state.xrays`."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.num_readers = 0
        self.has_load = False

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

    async def messages(self, name: str | None) -> AsyncGenerator[Message, None]:
        """Until the server stops. Nobody watches an engine longer than this is read."""
        models = self.models
        watched: Service | None = None
        xray, stop = Xray(), _nothing
        last, is_first = 0.0, True
        try:
            while not models.gateway.draining:
                service, now = models.loaded_service(name), time.monotonic()
                if is_first or service is not watched:
                    stop()
                    watched, xray, stop = service, Xray(), _nothing
                    if service is not None:
                        stop = service.llm.events.subscribe(xray, detail=True)
                    yield Message(now, engine=_describe(name or models.default_name, service))
                    last, is_first = now, False
                elif xray.has_news:
                    yield Message(now, window=xray.take())
                    last = now
                elif now - last >= QUIET_SECONDS:
                    yield Message(now)
                    last = now
                await asyncio.sleep(WINDOW_SECONDS)
        finally:
            stop()


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


def load_request(service: Service, model: str | None) -> GenerateRequest:
    """What each client of a load asks for; fits any context."""
    longest = service.max_model_len // 2
    return GenerateRequest(
        prompt="",
        model=model,
        max_tokens=min(LOAD_TOKENS, longest),
        truncate_prompt_tokens=longest,
        temperature=1.0,
        cache=False,
    )


def load_prompts(clients: int) -> list[str]:
    """One prompt a client: all share a prefix and differ at the end."""
    return [
        f"{PREAMBLE}Visitor {i + 1} asks about {SEEN[i % len(SEEN)]} {WHEN[i // len(SEEN) % 4]}:"
        for i in range(clients)
    ]


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
    )


def _nothing() -> None:
    pass
