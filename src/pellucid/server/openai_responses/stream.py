"""A response as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from pellucid.server.chat_job import ChatJob
from pellucid.server.errors import ErrorBody
from pellucid.server.openai_responses.answer import Answer
from pellucid.server.openai_responses.objects import (
    Event,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
)
from pellucid.server.openai_responses.protocol import ResponsesRequest
from pellucid.server.sse import EventStream, named_event


class ResponseStream(EventStream):
    """Ends with response.completed, .incomplete or .failed, behind which nothing comes."""

    last = b""

    def __init__(self, body: ResponsesRequest, chat: ChatJob) -> None:
        self._num_events = 0
        self._told = b""
        self._chat = chat
        self._answer = Answer(body, chat, self._tell)
        super().__init__(chat.job, self._all())

    def failure(self, body: msgspec.Struct) -> bytes:
        assert isinstance(body, ErrorBody)
        self._answer.fail(body.error)
        self._tell(ResponseFailed(response=self._answer.response))
        return self._taken()

    async def _all(self) -> AsyncGenerator[bytes, None]:
        """What one delta brings is sent at once; the beginning goes with the first."""
        response = self._answer.response
        async with aclosing(self._chat.job.deltas()) as deltas:
            async for delta in deltas:
                if self._num_events == 0:
                    self._tell(ResponseCreated(response=response))
                    self._tell(ResponseInProgress(response=response))
                self._answer.push(delta)
                if response.status == "completed":
                    self._tell(ResponseCompleted(response=response))
                elif response.status == "incomplete":
                    self._tell(ResponseIncomplete(response=response))
                if self._told:
                    yield self._taken()

    def _tell(self, event: Event) -> None:
        event.sequence_number = self._num_events
        self._num_events += 1
        self._told += named_event(str(type(event).__struct_config__.tag), event)

    def _taken(self) -> bytes:
        told, self._told = self._told, b""
        return told
