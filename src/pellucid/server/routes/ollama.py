"""Ollama's API, as far as it is about answers: /api/chat, /api/generate, and what they need.

What would change the models of this server is refused: a server that downloads or deletes at the
word of a client is not what this is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from pellucid import __version__
from pellucid.errors import BadRequest
from pellucid.server.models import models_of, receive_body, take_model
from pellucid.server.ollama import listing
from pellucid.server.ollama.answer import (
    ChatAnswer,
    GenerateAnswer,
    LineStream,
    Stopwatch,
    line,
    now,
)
from pellucid.server.ollama.errors import OllamaError
from pellucid.server.ollama.opening import open_conversation, open_generation, take_kept
from pellucid.server.ollama.protocol import (
    Answered,
    OllamaAnswerMessage,
    OllamaChat,
    OllamaChatAnswer,
    OllamaGenerate,
    OllamaGenerateAnswer,
    OllamaProcesses,
    OllamaPull,
    OllamaShow,
    OllamaShown,
    OllamaStatus,
    OllamaTags,
    OllamaVersion,
)
from pellucid.server.ollama.translate import keep_alive_seconds
from pellucid.server.openapi import describe
from pellucid.server.reply import json_response

router = APIRouter(prefix="/api")


class NotOffered(BadRequest):
    """What the API has and this server does not do for its clients."""

    status = 403


@router.post(
    "/chat",
    **describe(OllamaChat, OllamaChatAnswer, lines="an OllamaChatAnswer", error=OllamaError),
)
async def chat(request: Request) -> Response:
    """Answer a conversation; without messages, load or unload the model."""
    watch, body = Stopwatch(request), await receive_body(request, OllamaChat)
    if not body.messages:
        done = await _load(request, body, watch)
        return _at_once(OllamaChatAnswer(OllamaAnswerMessage(), **done), streams=body.streams)
    service = await take_kept(request, body, watch)
    answer = ChatAnswer(await open_conversation(request, service, body), body.asked, watch)
    return await answer.respond(request, streams=body.streams)


@router.post(
    "/generate",
    **describe(
        OllamaGenerate, OllamaGenerateAnswer, lines="an OllamaGenerateAnswer", error=OllamaError
    ),
)
async def generate(request: Request) -> Response:
    """Answer a prompt; without one, load or unload the model."""
    watch, body = Stopwatch(request), await receive_body(request, OllamaGenerate)
    if not body.prompt:
        done = await _load(request, body, watch)
        return _at_once(OllamaGenerateAnswer("", **done), streams=body.streams)
    service = await take_kept(request, body, watch)
    opened = await open_generation(request, service, body)
    answer = GenerateAnswer(opened, body.asked, watch, has_context=not body.raw)
    return await answer.respond(request, streams=body.streams)


@router.get("/tags", **describe(None, OllamaTags, errors=(401,), error=OllamaError))
async def tags(request: Request) -> Response:
    """The models that this server serves, whether loaded or not."""
    return json_response(listing.tags(models_of(request)))


@router.get("/ps", **describe(None, OllamaProcesses, errors=(401,), error=OllamaError))
async def processes(request: Request) -> Response:
    """The models in memory."""
    return json_response(listing.processes(models_of(request)))


@router.post("/show", **describe(OllamaShow, OllamaShown, error=OllamaError))
async def show(request: Request) -> Response:
    """One model in detail, for which it is loaded."""
    body = await receive_body(request, OllamaShow)
    service = await take_model(request, body)
    return json_response(listing.shown(models_of(request), service))


@router.get("/version", **describe(None, OllamaVersion, errors=(401,), error=OllamaError))
async def version() -> Response:
    """The version of pellucid, not of an Ollama."""
    return json_response(OllamaVersion(__version__))


@router.post(
    "/pull", **describe(OllamaPull, OllamaStatus, lines="an OllamaStatus", error=OllamaError)
)
async def pull(request: Request) -> Response:
    """A model that is served is there already; any other is not fetched at a client's word."""
    body = await receive_body(request, OllamaPull)
    models_of(request).status(body.model)
    return _at_once(OllamaStatus("success"), streams=body.stream is not False)


@router.post("/create", include_in_schema=False)
@router.post("/copy", include_in_schema=False)
@router.post("/push", include_in_schema=False)
@router.delete("/delete", include_in_schema=False)
@router.api_route("/blobs/{digest:path}", methods=["POST", "HEAD"], include_in_schema=False)
async def refuse(request: Request) -> Response:
    """Whatever would change the models of this server."""
    raise NotOffered(
        f"{request.scope['path']} is not offered: which models there are is up to who runs this "
        "server, see `pellucid pull` and `pellucid serve`.",
        code="not_offered",
    )


async def _load(request: Request, body: Answered, watch: Stopwatch) -> dict[str, Any]:
    """The answer to a request that has no question."""
    if keep_alive_seconds(body.keep_alive) == 0:
        models_of(request).set_keep_alive(body.model, 0)  # it goes when nobody uses it
        reason = "unload"
    else:
        await take_kept(request, body, watch)
        reason = "load"
    done = {"model": body.asked, "created_at": now(), "done": True, "done_reason": reason}
    return {**done, **watch.durations(None)}


def _at_once(done: msgspec.Struct, *, streams: bool) -> Response:
    """An answer that is known without the model."""
    if streams:
        return Response(line(done), media_type=LineStream.media_type)
    return json_response(done)
