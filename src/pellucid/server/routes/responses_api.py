"""POST /v1/responses and /v1/responses/input_tokens: OpenAI's Responses API, without storage."""

from __future__ import annotations

from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from pellucid.server.chat_job import ChatJob, open_chat, prompt_ids
from pellucid.server.models import receive
from pellucid.server.openai_responses.answer import Answer
from pellucid.server.openai_responses.objects import EVENTS, InputTokens, ResponseObject
from pellucid.server.openai_responses.protocol import InputTokensRequest, ResponsesRequest
from pellucid.server.openai_responses.stream import ResponseStream
from pellucid.server.openai_responses.translate import NAMES, chat_request, counted_request
from pellucid.server.openapi import describe
from pellucid.server.own_names import own_names
from pellucid.server.reply import json_response, whole

router = APIRouter()
EVENT_NAMES = "one of " + ", ".join(event.__name__ for event in EVENTS)


@router.post(
    "/v1/responses",
    **describe(ResponsesRequest, ResponseObject, events=EVENT_NAMES, last=None),
)
async def responses(request: Request) -> Response:
    """Answer a conversation in items: thoughts, text and calls."""
    service, body = await receive(request, ResponsesRequest)
    asked = chat_request(service, body)
    with own_names(NAMES):
        chat = await open_chat(request, service, asked, kind="resp_")
    if body.stream:
        return ResponseStream(body, chat)
    return await whole(request, chat.job, _whole(body, chat))


@router.post("/v1/responses/input_tokens", **describe(InputTokensRequest, InputTokens))
async def input_tokens(request: Request) -> Response:
    """Count the tokens of a prompt that is not answered."""
    service, body = await receive(request, InputTokensRequest)
    asked = counted_request(service, body)
    with own_names(NAMES):
        prompt = await prompt_ids(service, asked)
    return json_response(InputTokens(len(prompt)))


async def _whole(body: ResponsesRequest, chat: ChatJob) -> ResponseObject:
    # Not collected first: which tokens are text is known as long as they come one by one.
    answer = Answer(body, chat, lambda event: None)
    async with aclosing(chat.job.deltas()) as deltas:
        async for delta in deltas:
            answer.push(delta)
    return answer.response
