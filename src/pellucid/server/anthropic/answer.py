"""A job's deltas as a message of Anthropic's API, whole or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import msgspec

from pellucid.frontend.outputs import Delta
from pellucid.server.anthropic.blocks import Blocks, put_together
from pellucid.server.anthropic.protocol import MessagesRequest
from pellucid.server.anthropic.responses import (
    AnswerBlock,
    AnswerMessage,
    BlockEvent,
    MessageDelta,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    Stop,
)
from pellucid.server.chat_job import ChatJob
from pellucid.server.job import Job, Tally
from pellucid.server.sse import EventStream, named_event


class MessageStream(EventStream):
    """Ends with `message_stop`, or with an event named `error`."""

    last = b""

    def failure(self, body: msgspec.Struct) -> bytes:
        return named_event("error", body)


class Answer:
    """The one answer of a job."""

    def __init__(self, chat: ChatJob, body: MessagesRequest) -> None:
        self.job: Job = chat.job
        self._model = chat.service.model_name
        self._parts = chat.parts(0)
        display = getattr(body.thinking, "display", None)
        self._blocks = Blocks(shows_thoughts=display != "omitted")
        self._tally = Tally(chat.job)
        # The context may have had less room than was asked for.
        self._cut_short = (chat.job.params.max_tokens or 0) < body.max_tokens

    async def whole(self) -> AnswerMessage:
        (answer,) = await self.job.collect()
        self._tally.add(answer)
        message = self._message(put_together(self._events(answer)))
        stop = self._stop(answer)
        message.stop_reason, message.stop_sequence = stop.stop_reason, stop.stop_sequence
        return message

    async def stream(self) -> AsyncGenerator[bytes, None]:
        begun = False
        async with aclosing(self.job.deltas()) as deltas:
            async for delta in deltas:
                self._tally.add(delta)
                events: list[MessageEvent] = [] if begun else [MessageStart(self._message([]))]
                begun = True
                events += self._events(delta)
                if delta.finish_reason is not None:
                    events += [MessageDelta(self._stop(delta), self._usage()), MessageStop()]
                if events:
                    yield b"".join(map(_encoded, events))

    def _message(self, content: list[AnswerBlock]) -> AnswerMessage:
        return AnswerMessage(
            id=self.job.id, model=self._model, content=content, usage=self._usage()
        )

    def _events(self, delta: Delta) -> Iterator[BlockEvent]:
        for part in self._parts.push(delta):
            yield from self._blocks.push(part)
        if delta.finish_reason is not None:
            yield from self._blocks.finish()

    def _stop(self, delta: Delta) -> Stop:
        if isinstance(delta.stop_reason, str):
            return Stop("stop_sequence", delta.stop_reason)
        reason = self._parts.finish_reason(delta)
        if reason == "length":
            return Stop("model_context_window_exceeded" if self._cut_short else "max_tokens", None)
        return Stop("tool_use" if reason == "tool_calls" else "end_turn", None)

    def _usage(self) -> MessageUsage:
        usage = self._tally.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return MessageUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
        )


def _encoded(event: MessageEvent) -> bytes:
    return named_event(str(event.__struct_config__.tag), event)
