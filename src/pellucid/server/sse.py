"""Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pellucid.server.errors import body_of
from pellucid.server.job import Job
from pellucid.server.reply import unless_gone

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

_encode = msgspec.json.Encoder().encode


def event(payload: msgspec.Struct) -> bytes:
    """One event with `payload` as JSON."""
    return b"data: " + _encode(payload) + b"\n\n"


def named_event(name: str, payload: msgspec.Struct) -> bytes:
    """One event with a name, for clients that listen to events by name."""
    return b"event: " + name.encode() + b"\n" + event(payload)


class EventStream(StreamingResponse):
    """Streams the events of a job and closes the job at the end, whichever way it comes.

    Until the first event exists nothing is sent, so that a failure before it has its own status.
    Afterwards a failure is the last event, and `[DONE]` is missing: done means done. Other APIs end
    and fail in other ways, which subclasses say.
    """

    media_type = "text/event-stream"
    last = DONE  # what is sent after the last event

    def __init__(self, job: Job, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, headers=HEADERS)
        self._job = job
        self._events = events

    def failure(self, body: msgspec.Struct) -> bytes:
        """What is sent instead of the rest; `body` has the shape of the API's errors."""
        return event(body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send_all(scope, send))
        finally:
            await self._job.aclose()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await _send_part(send, first)
            try:
                async for part in events:
                    await _send_part(send, part)
            except Exception as error:
                end = self.failure(body_of(error, scope))
            else:
                end = self.last
            await send({"type": "http.response.body", "body": end, "more_body": False})


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})
