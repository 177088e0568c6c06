"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from pellucid.frontend.outputs import Delta
from pellucid.server.chat_job import ChatJob, open_chat
from pellucid.server.chunks import Chunks
from pellucid.server.conversation import conversation, text_of
from pellucid.server.job import Tally
from pellucid.server.logprobs import chat_logprobs, prompt_logprobs
from pellucid.server.models import receive
from pellucid.server.openapi import describe
from pellucid.server.protocol import ChatRequest
from pellucid.server.reply import whole
from pellucid.server.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatFinishReason,
    ChatLogprobs,
    ChatMessage,
)
from pellucid.server.sse import EventStream

router = APIRouter()


@router.post("/v1/chat/completions", **describe(ChatRequest, ChatCompletion, events="a ChatChunk"))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service, body = await receive(request, ChatRequest)
    chat = _Chat(await open_chat(request, service, body))
    if body.stream:
        return EventStream(chat.job, chat.stream())
    return await whole(request, chat.job, chat.whole())


class _Chat:
    """A job's deltas in OpenAI's chat shapes."""

    def __init__(self, chat: ChatJob) -> None:
        self.job = chat.job
        self._service = chat.service
        self._body = chat.body
        self._form = chat.form
        self._parts = chat.parts
        last = conversation(chat.body)[-1]
        # As in vLLM: the answer repeats the beginning that it continues.
        self._opening = text_of(last) if chat.body.echo and last.role == "assistant" else ""

    async def whole(self) -> ChatCompletion:
        answers = await self.job.collect()
        choices = [self._choice(answer) for answer in answers]
        tally = Tally(self.job)
        for answer in answers:
            tally.add(answer, self._num_reasoning_tokens(answer))
        completion = ChatCompletion(
            id=self.job.id,
            created=self.job.created,
            model=self._service.model_name,
            system_fingerprint=self._service.fingerprint,
            choices=choices,
            usage=tally.usage(),
        )
        if self._body.return_token_ids:
            completion.prompt_token_ids = self.job.generations[0].prompt_token_ids
        if answers[0].prompt_logprobs is not None:
            completion.prompt_logprobs = prompt_logprobs(answers[0].prompt_logprobs)
        return completion

    async def stream(self) -> AsyncGenerator[bytes, None]:
        chunks = Chunks(ChatChunk, self._service, self._body, self.job)
        begun: set[int] = set()
        async with aclosing(self.job.deltas()) as deltas:
            async for delta in deltas:
                events = b""
                shown = [] if self._form.is_plain else self._choices(delta)
                chunks.count(delta, self._num_reasoning_tokens(delta))
                if delta.index not in begun:
                    first = not begun and self._body.return_token_ids
                    begun.add(delta.index)
                    opening = ChatChunkChoice(delta.index, ChatDelta("assistant", self._opening))
                    ids = self.job.generations[0].prompt_token_ids if first else UNSET
                    events += chunks.event(opening, prompt_token_ids=ids)
                if not self._form.is_plain:
                    events += b"".join(map(chunks.event, shown))
                elif delta.text or delta.logprobs or self._body.return_token_ids:
                    events += chunks.event(self._content(delta))
                if delta.finish_reason is not None:
                    events += chunks.event(self._end(delta))
                if events:
                    yield events
        if usage := chunks.usage():
            yield usage

    def _choice(self, answer: Delta) -> ChatChoice:
        if self._form.is_plain:
            message = ChatMessage(answer.text)
        else:
            message = self._parts(answer.index).message(answer)
        if self._opening:
            message.content = self._opening + (message.content or "")
        return ChatChoice(
            answer.index,
            message,
            self._finish_reason(answer),
            self._logprobs(answer),
            answer.stop_reason,
            self._token_ids(answer),
        )

    def _choices(self, delta: Delta) -> list[ChatChunkChoice]:
        """Parts of an answer with thoughts or calls; the first carries what belongs to tokens."""
        shown = self._parts(delta.index).push(delta)
        if not shown and (delta.logprobs or self._body.return_token_ids):
            shown = [ChatDelta(content="")]
        choices = [ChatChunkChoice(delta.index, part) for part in shown]
        if choices:
            choices[0].logprobs = self._logprobs(delta)
            choices[0].token_ids = self._token_ids(delta)
        return choices

    def _num_reasoning_tokens(self, delta: Delta) -> int:
        return 0 if self._form.is_plain else self._parts(delta.index).num_reasoning_tokens

    def _finish_reason(self, delta: Delta) -> ChatFinishReason | None:
        if self._form.is_plain:
            return delta.finish_reason
        return self._parts(delta.index).finish_reason(delta)

    def _end(self, delta: Delta) -> ChatChunkChoice:
        return ChatChunkChoice(
            delta.index, ChatDelta(), self._finish_reason(delta), stop_reason=delta.stop_reason
        )

    def _content(self, delta: Delta) -> ChatChunkChoice:
        return ChatChunkChoice(
            delta.index,
            ChatDelta(content=delta.text),
            logprobs=self._logprobs(delta),
            token_ids=self._token_ids(delta),
        )

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if delta.logprobs is None:
            return None
        return chat_logprobs(delta.logprobs, as_ids=bool(self._body.return_tokens_as_token_ids))

    def _token_ids(self, delta: Delta) -> list[int] | UnsetType:
        return delta.token_ids if self._body.return_token_ids else UNSET
