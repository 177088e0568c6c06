"""An answer in Ollama's shapes: one object, or a line of JSON for each piece of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pellucid.frontend.outputs import Delta
from pellucid.messages import RequestTimes
from pellucid.server.chat_job import ChatJob
from pellucid.server.logprobs import chat_logprobs
from pellucid.server.ollama.protocol import (
    AnswerCall,
    AnswerFunction,
    AnswerPart,
    OllamaAnswerMessage,
    OllamaChatAnswer,
    OllamaGenerateAnswer,
    OllamaLogprob,
)
from pellucid.server.reply import whole
from pellucid.server.responses import ChatDelta
from pellucid.server.sse import EventStream

_encode = msgspec.json.Encoder().encode


def line(payload: msgspec.Struct) -> bytes:
    return _encode(payload) + b"\n"


class LineStream(EventStream):
    """A stream whose events are lines of JSON; the last one has `done`, or is an error."""

    media_type = "application/x-ndjson"
    last = b""

    def failure(self, body: msgspec.Struct) -> bytes:
        return line(body)


@dataclass(slots=True)
class Part:
    """A piece of an answer."""

    content: str = ""
    thinking: str = ""
    calls: list[AnswerCall] = field(default_factory=list)


class Stopwatch:
    """Began with the request's first byte; `loaded` says that the model was at hand."""

    def __init__(self, request: Request) -> None:
        record = getattr(request.state, "record", None)
        self._began: float = time.monotonic() if record is None else record.received
        self._loaded = self._began

    def loaded(self) -> None:
        self._loaded = time.monotonic()

    def durations(self, times: RequestTimes | None) -> dict[str, int]:
        """Nanoseconds so far; those of the prompt and the answer as far as they are known."""
        known = {
            "total_duration": _ns(self._began, time.monotonic()),
            "load_duration": _ns(self._began, self._loaded),
        }
        if times is not None and times.scheduled is not None and times.first_token is not None:
            known["prompt_eval_duration"] = _ns(times.scheduled, times.first_token)
            known["eval_duration"] = _ns(times.first_token, times.finished or times.first_token)
        return known


class Answer:
    """A job's deltas as Ollama's objects. What they look like, subclasses say."""

    def __init__(self, chat: ChatJob, asked: str, watch: Stopwatch) -> None:
        self._chat = chat
        self._asked = asked
        self._watch = watch
        self._calls = _Calls()
        self._token_ids: list[int] = []

    async def respond(self, request: Request, *, streams: bool) -> Response:
        job = self._chat.job
        if streams:
            return LineStream(job, self._lines())
        return await whole(request, job, self._whole())

    async def _whole(self) -> AnswerPart:
        (delta,) = await self._chat.job.collect()
        part = Part()
        for piece in self._parts(delta):
            part.content += piece.content
            part.thinking += piece.thinking
            part.calls += piece.calls
        return self._object(part, logprobs=_logprobs(delta), **self._end(delta))

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._chat.job.deltas()) as deltas:
            async for delta in deltas:
                parts = list(self._parts(delta))
                logprobs = _logprobs(delta)
                if logprobs and not parts:
                    parts.append(Part())
                lines = b""
                for part in parts:
                    lines += line(self._object(part, logprobs=logprobs))
                    logprobs = UNSET  # they go with the first
                end = self._end(delta)
                if end:
                    lines += line(self._object(Part(), **end))
                if lines:
                    yield lines

    def _parts(self, delta: Delta) -> Iterator[Part]:
        for shown in self._chat.parts(delta.index).push(delta):
            yield from self._calls.push(shown)
        if delta.finish_reason is not None:
            yield from self._calls.finish()

    def _end(self, delta: Delta) -> dict[str, Any]:
        """Count `delta`; the fields of the last object if it is the last one."""
        self._token_ids += delta.token_ids
        if delta.finish_reason is None:
            return {}
        return {
            "done": True,
            "done_reason": delta.finish_reason,
            "prompt_eval_count": len(self._prompt_ids),
            "eval_count": len(self._token_ids),
            **self._watch.durations(delta.times),
        }

    @property
    def _prompt_ids(self) -> list[int]:
        return self._chat.job.generations[0].prompt_token_ids

    def _object(self, part: Part, **fields: Any) -> AnswerPart:
        raise NotImplementedError


class ChatAnswer(Answer):
    def _object(self, part: Part, **fields: Any) -> AnswerPart:
        message = OllamaAnswerMessage(
            part.content, thinking=part.thinking or UNSET, tool_calls=part.calls or UNSET
        )
        return OllamaChatAnswer(model=self._asked, created_at=now(), message=message, **fields)


class GenerateAnswer(Answer):
    """`context` is for a request that may follow this one."""

    def __init__(self, chat: ChatJob, asked: str, watch: Stopwatch, *, has_context: bool) -> None:
        super().__init__(chat, asked, watch)
        self._has_context = has_context

    def _end(self, delta: Delta) -> dict[str, Any]:
        end = super()._end(delta)
        if end and self._has_context:
            end["context"] = self._prompt_ids + self._token_ids
        return end

    def _object(self, part: Part, **fields: Any) -> AnswerPart:
        return OllamaGenerateAnswer(
            model=self._asked,
            created_at=now(),
            response=part.content,
            thinking=part.thinking or UNSET,
            **fields,
        )


class _Calls:
    """Puts streamed calls together: Ollama's clients get each one whole, arguments decoded."""

    def __init__(self) -> None:
        self._id = ""  # of the open call
        self._name = ""
        self._arguments = ""

    def push(self, shown: ChatDelta) -> Iterator[Part]:
        if not shown.tool_calls:
            yield from self.finish()
            yield Part(shown.content or "", shown.reasoning or "")
            return
        for call in shown.tool_calls:
            if call.id:
                yield from self.finish()
                self._id, self._name = call.id, call.function.name or ""
            self._arguments += call.function.arguments or ""

    def finish(self) -> Iterator[Part]:
        """What is known to end here. A call that was cut is none, and is shown as text."""
        if not self._id:
            return
        try:
            arguments = msgspec.json.decode(self._arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            yield Part(f"{self._name} {self._arguments}")
        else:
            yield Part(calls=[AnswerCall(self._id, AnswerFunction(self._name, arguments))])
        self._id = self._name = self._arguments = ""


def now() -> datetime:
    return datetime.now(UTC)


def _logprobs(delta: Delta) -> list[OllamaLogprob] | UnsetType:
    if delta.logprobs is None:
        return UNSET
    return [
        OllamaLogprob(
            token=entry.token,
            logprob=entry.logprob,
            bytes=entry.bytes or [],
            top_logprobs=[
                OllamaLogprob(token=top.token, logprob=top.logprob, bytes=top.bytes or [])
                for top in entry.top_logprobs
            ]
            or UNSET,
        )
        for entry in chat_logprobs(delta.logprobs, as_ids=False).content
    ]


def _ns(begin: float, end: float) -> int:
    return max(0, round((end - begin) * 1e9))
