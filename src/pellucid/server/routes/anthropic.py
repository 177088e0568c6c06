"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid.server.anthropic.answer import Answer, MessageStream
from pellucid.server.anthropic.errors import messages_error
from pellucid.server.anthropic.protocol import MessagesRequest, TokenCountRequest
from pellucid.server.anthropic.responses import AnswerMessage, MessagesError, TokenCount
from pellucid.server.anthropic.translate import NAMES, chat_request
from pellucid.server.chat_job import open_chat, prompt_ids
from pellucid.server.errors import ERROR_SHAPES
from pellucid.server.models import receive
from pellucid.server.openapi import describe
from pellucid.server.own_names import own_names
from pellucid.server.reply import json_response, whole

router = APIRouter()
ERROR_SHAPES["/v1/messages"] = messages_error


@router.post(
    "/v1/messages",
    **describe(
        MessagesRequest,
        AnswerMessage,
        events="a MessageStart, BlockStart, BlockDelta, BlockStop or MessageDelta",
        last="a MessageStop",
        error=MessagesError,
    ),
)
async def messages(request: Request) -> Response:
    """Answer a conversation."""
    service, body = await receive(request, MessagesRequest)
    with own_names(NAMES):
        asked = chat_request(service, body)
        prompt = await prompt_ids(service, asked)
        room = max(service.max_model_len - len(prompt), 1)
        asked.max_tokens = min(max(body.max_tokens, 1), room)
        chat = await open_chat(
            request,
            service,
            asked,
            kind="msg_",
            prompt=prompt,
            thinking_budget=getattr(body.thinking, "budget_tokens", None),
        )
    chat.job.scores_only = body.max_tokens == 0
    answer = Answer(chat, body)
    if body.stream:
        return MessageStream(chat.job, answer.stream())
    return await whole(request, chat.job, answer.whole())


@router.post(
    "/v1/messages/count_tokens", **describe(TokenCountRequest, TokenCount, error=MessagesError)
)
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a conversation has."""
    service, body = await receive(request, TokenCountRequest)
    with own_names(NAMES):
        prompt = await prompt_ids(service, chat_request(service, body))
    return json_response(TokenCount(len(prompt)))
