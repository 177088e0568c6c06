"""POST /v1/completions: text in, its continuation out; also scores a text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from pellucid.frontend.outputs import Delta, Logprob
from pellucid.server.chunks import Chunks
from pellucid.server.job import Answers, Job, Tally
from pellucid.server.logprobs import CompletionSpelling, joined, prompt_logprobs
from pellucid.server.models import receive
from pellucid.server.openapi import describe
from pellucid.server.params import completion_params, prompts_of
from pellucid.server.protocol import CompletionRequest
from pellucid.server.reply import whole
from pellucid.server.responses import CompletionChoice, TextCompletion
from pellucid.server.service import Service
from pellucid.server.sse import EventStream

router = APIRouter()


@router.post(
    "/v1/completions", **describe(CompletionRequest, TextCompletion, events="a TextCompletion")
)
async def completions(request: Request) -> Response:
    """Continue one or more prompts."""
    service, body = await receive(request, CompletionRequest)
    params = completion_params(body)
    prompts = prompts_of("prompt", body.prompt, service.config.max_prompts)
    job = await service.open(request, body, params, prompts, kind="cmpl")
    completion = _Completion(service, body, job)
    if body.stream:
        return EventStream(job, completion.stream())
    return await whole(request, job, completion.whole())


class _Completion:
    """A job's deltas in OpenAI's completion shapes."""

    def __init__(self, service: Service, body: CompletionRequest, job: Job) -> None:
        self._service = service
        self._body = body
        self._job = job
        self._spelling: dict[int, CompletionSpelling] = {}  # by choice
        self._prompt_logprobs: dict[str, list[Logprob | None]] = {}  # by prompt

    async def whole(self) -> TextCompletion:
        tally = Tally(self._job)
        choices = []
        for answer in await self._job.collect():
            tally.add(answer)
            choices.append(self._choice(answer, first=True))
        return TextCompletion(
            id=self._job.id,
            created=self._job.created,
            model=self._service.model_name,
            system_fingerprint=self._service.fingerprint,
            choices=choices,
            usage=tally.usage(),
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        chunks = Chunks(TextCompletion, self._service, self._body, self._job)
        begun: set[int] = set()
        async with aclosing(self._job.deltas()) as deltas:
            async for delta in deltas:
                chunks.count(delta)
                first = delta.index not in begun
                begun.add(delta.index)
                choice = self._choice(delta, first=first)
                if choice.text or choice.finish_reason or choice.logprobs or choice.token_ids:
                    yield chunks.event(choice)
        if usage := chunks.usage():
            yield usage

    def _choice(self, delta: Delta, *, first: bool) -> CompletionChoice:
        """A choice for `delta`; the first one of an answer also tells of its prompt."""
        choice = CompletionChoice(delta.index, "")
        if first:
            self._add_prompt(choice, delta)
        choice.text += delta.text
        if delta.logprobs is not None:
            part = self._spelling_of(delta.index).answer(delta.logprobs)
            choice.logprobs = part if choice.logprobs is None else joined(choice.logprobs, part)
        if delta.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
        if self._body.return_token_ids:
            choice.token_ids = delta.token_ids
        return choice

    def _add_prompt(self, choice: CompletionChoice, delta: Delta) -> None:
        prompt = self._job.prompt_of(delta.index)
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs[prompt.request_id] = delta.prompt_logprobs
        # Computed with the first answer to a prompt, and shown with every one.
        scores = self._prompt_logprobs.get(prompt.request_id)
        if self._body.echo:
            choice.text = self._echo(prompt)
            if scores is not None and self._body.logprobs is not None:
                spelling = self._spelling_of(delta.index)
                choice.logprobs = spelling.prompt(prompt.prompt_token_ids, scores, choice.text)
        if scores is not None and self._body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(scores)
        if self._body.return_token_ids:
            choice.prompt_token_ids = prompt.prompt_token_ids

    def _echo(self, prompt: Answers) -> str:
        text = prompt.request.prompt
        if text is not None and self._body.truncate_prompt_tokens is None:
            return text
        return self._service.llm.decode(
            prompt.prompt_token_ids, skip_special_tokens=self._job.params.skip_special_tokens
        )

    def _spelling_of(self, index: int) -> CompletionSpelling:
        spelling = self._spelling.get(index)
        if spelling is None:
            spelling = self._spelling[index] = CompletionSpelling(
                self._service.llm.tokenizer,
                as_ids=bool(self._body.return_tokens_as_token_ids),
                hides_special=self._job.params.skip_special_tokens,
            )
        return spelling
