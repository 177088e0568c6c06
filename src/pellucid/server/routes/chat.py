"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from pellucid.frontend.outputs import Delta
from pellucid.server.chunks import Chunks
from pellucid.server.conversation import (
    conversation,
    template_messages,
    template_options,
    text_of,
)
from pellucid.server.job import Job, Tally
from pellucid.server.logprobs import chat_logprobs, prompt_logprobs
from pellucid.server.openapi import describe
from pellucid.server.params import chat_params
from pellucid.server.protocol import ChatRequest
from pellucid.server.reply import whole
from pellucid.server.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
)
from pellucid.server.service import Service, service_of
from pellucid.server.sse import EventStream

router = APIRouter()


@router.post("/v1/chat/completions", **describe(ChatRequest, ChatCompletion, events="a ChatChunk"))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    body = await service.read(request, ChatRequest)
    params = chat_params(body)
    job = await service.open(
        request,
        body,
        params,
        [await _prompt(service, body)],
        kind="chatcmpl",
        prompt_field="messages" if body.prompt is None else "prompt",
    )
    chat = _Chat(service, body, job)
    if body.stream:
        return EventStream(job, chat.stream())
    return await whole(request, job, chat.whole())


async def _prompt(service: Service, body: ChatRequest) -> str | list[int]:
    messages = template_messages(conversation(body))
    options = template_options(body)
    if body.add_special_tokens:  # besides those that the template writes
        return service.llm.text.render_chat(messages, **options)
    return await service.llm.chat_prompt(messages, **options)


class _Chat:
    """A job's deltas in OpenAI's chat shapes."""

    def __init__(self, service: Service, body: ChatRequest, job: Job) -> None:
        self._service = service
        self._body = body
        self._job = job
        last = conversation(body)[-1]
        # As in vLLM: the answer repeats the beginning that it continues.
        self._opening = text_of(last) if body.echo and last.role == "assistant" else ""

    async def whole(self) -> ChatCompletion:
        answers = await self._job.collect()
        tally = Tally(self._job)
        for answer in answers:
            tally.add(answer)
        completion = ChatCompletion(
            id=self._job.id,
            created=self._job.created,
            model=self._service.llm.model_name,
            system_fingerprint=self._service.fingerprint,
            choices=[self._choice(answer) for answer in answers],
            usage=tally.usage(),
        )
        if self._body.return_token_ids:
            completion.prompt_token_ids = self._job.generations[0].prompt_token_ids
        if answers[0].prompt_logprobs is not None:
            completion.prompt_logprobs = prompt_logprobs(answers[0].prompt_logprobs)
        return completion

    async def stream(self) -> AsyncGenerator[bytes, None]:
        chunks = Chunks(ChatChunk, self._service, self._body, self._job)
        begun: set[int] = set()
        async with aclosing(self._job.deltas()) as deltas:
            async for delta in deltas:
                chunks.count(delta)
                events = b""
                if delta.index not in begun:
                    begun.add(delta.index)
                    opening = ChatDelta("assistant", self._opening)
                    events += chunks.event(ChatChunkChoice(delta.index, opening))
                if delta.text or delta.logprobs or self._body.return_token_ids:
                    events += chunks.event(self._content(delta))
                if delta.finish_reason is not None:
                    events += chunks.event(_end(delta))
                if events:
                    yield events
        if usage := chunks.usage():
            yield usage

    def _choice(self, answer: Delta) -> ChatChoice:
        return ChatChoice(
            answer.index,
            ChatMessage(self._opening + answer.text),
            answer.finish_reason,
            self._logprobs(answer),
            answer.stop_reason,
            self._token_ids(answer),
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


def _end(delta: Delta) -> ChatChunkChoice:
    return ChatChunkChoice(
        delta.index, ChatDelta(), delta.finish_reason, stop_reason=delta.stop_reason
    )
