"""POST /tokenize, /detokenize and /apply-template: what the model reads."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from pellucid.errors import BadRequest
from pellucid.server.conversation import check_messages, template_messages, template_options
from pellucid.server.models import receive
from pellucid.server.openapi import describe
from pellucid.server.params import invalid
from pellucid.server.protocol import (
    ApplyTemplateRequest,
    DetokenizeRequest,
    TemplateFields,
    TokenizeRequest,
)
from pellucid.server.reply import json_response
from pellucid.server.responses import AppliedTemplate, Detokenized, Tokenized
from pellucid.server.service import Service
from pellucid.server.tools import tool_messages

router = APIRouter()


@router.post("/tokenize", **describe(TokenizeRequest, Tokenized))
async def tokenize(request: Request) -> Response:
    """Token ids of a text, or of a conversation in the model's chat format."""
    service, body = await receive(request, TokenizeRequest)
    ids = await _token_ids(service, body)
    names = None
    if body.return_token_strs:
        names = [service.llm.tokenizer.token_text(token) for token in ids]
    return json_response(Tokenized(len(ids), service.max_model_len, ids, names))


@router.post("/detokenize", **describe(DetokenizeRequest, Detokenized))
async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    service, body = await receive(request, DetokenizeRequest)
    size = service.llm.info.vocab_size
    for position, token in enumerate(body.tokens):
        if token >= size:
            raise BadRequest(
                f"tokens[{position}] is outside the vocabulary (0 to {size - 1}), got {token}",
                param=f"tokens[{position}]",
                code="invalid_value",
            )
    decode = service.llm.decode
    text = await asyncio.to_thread(decode, body.tokens, skip_special_tokens=False)
    return json_response(Detokenized(text))


@router.post("/apply-template", **describe(ApplyTemplateRequest, AppliedTemplate))
async def apply_template(request: Request) -> Response:
    """A conversation as the text that the model would continue; nothing is generated."""
    service, body = await receive(request, ApplyTemplateRequest)
    return json_response(AppliedTemplate(_rendered(service, body)))


async def _token_ids(service: Service, body: TokenizeRequest) -> list[int]:
    """A text gets special tokens by default; a conversation has those of its template."""
    if body.messages is None:
        if body.prompt is None:
            raise BadRequest("prompt or messages is required", param="prompt", code="missing_field")
        for name in TemplateFields.__struct_fields__:
            if getattr(body, name) is not None:
                raise invalid(name, "needs messages")
        return await service.tokenize(
            body.prompt, add_special_tokens=body.add_special_tokens is not False
        )
    if body.prompt is not None:
        raise invalid("prompt", "and messages exclude each other")
    text = _rendered(service, body)
    return await service.tokenize(text, add_special_tokens=bool(body.add_special_tokens))


def _rendered(service: Service, body: TemplateFields) -> str:
    """The conversation as text. Raises BadRequest."""
    if body.messages is None:
        raise BadRequest("messages is required", param="messages", code="missing_field")
    if not body.messages:
        raise invalid("messages", "must hold at least one message")
    check_messages(body.messages)
    messages, told = tool_messages(service, template_messages(body.messages), body.tools)
    options = template_options(service, body)
    return service.llm.text.render_chat(messages, **options, **told)
