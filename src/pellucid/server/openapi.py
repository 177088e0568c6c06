"""The OpenAPI document: FastAPI's routes with the schemas of our msgspec structs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pellucid.server import embedding, protocol, responses
from pellucid.server.anthropic import responses as anthropic
from pellucid.server.errors import ErrorBody
from pellucid.server.observation import Timeline
from pellucid.server.ollama import embed as ollama_embed
from pellucid.server.ollama import protocol as ollama
from pellucid.server.ollama.errors import OllamaError
from pellucid.server.openai_responses import objects as openai_responses

REF = "#/components/schemas/{name}"
_SCHEMAS: tuple[type[msgspec.Struct], ...] = (
    protocol.ChatRequest,
    protocol.CompletionRequest,
    protocol.GenerateRequest,
    protocol.TokenizeRequest,
    protocol.DetokenizeRequest,
    protocol.ApplyTemplateRequest,
    protocol.ModelRequest,
    protocol.LoadLora,
    protocol.UnloadLora,
    responses.ChatCompletion,
    responses.ChatChunk,
    responses.TextCompletion,
    responses.Generated,
    responses.GenerateToken,
    responses.GenerateEnd,
    responses.Tokenized,
    responses.Detokenized,
    responses.AppliedTemplate,
    responses.Model,
    responses.ModelList,
    responses.Deleted,
    responses.Health,
    responses.Version,
    responses.Load,
    responses.ServerLoad,
    responses.Index,
    Timeline,
    ErrorBody,
    *embedding.SCHEMAS,
    *openai_responses.SCHEMAS,
    *anthropic.SCHEMAS,
    *ollama.SCHEMAS,
    *ollama_embed.SCHEMAS,
    OllamaError,
)
_ERRORS = {
    400: "A field is wrong, unknown or not supported.",
    401: "An API key is required, or the one that was sent is not known.",
    403: "The server was not told to allow this.",
    404: "There is no such model, or no such request.",
    408: "The body took too long to arrive.",
    409: "The model is in use.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "The queue is full or a rate limit reached; Retry-After says when to come back.",
    500: "A bug in the server.",
    503: "The engine is dead or being restarted, the model cannot be loaded, or the server stops.",
    504: "The request timed out.",
}
USUAL_ERRORS = tuple(code for code in _ERRORS if code not in (403, 409))


def describe(
    body: type[msgspec.Struct] | None,
    answer: type[msgspec.Struct] | None,
    *,
    events: str | None = None,
    last: str | None = "[DONE]",
    lines: str | None = None,
    text: str | None = None,
    errors: Iterable[int] = USUAL_ERRORS,
    error: type[msgspec.Struct] = ErrorBody,
) -> dict[str, Any]:
    """Keyword arguments for a route's decorator that document its body and its answers.

    `answer` is the JSON of a success; `events` names what the events of a stream hold, and `last`
    what comes after them; `lines` names what the lines of a stream are; `text` is what a plain text
    says. `errors` are the statuses of refusals and failures, with `error` as body.
    """
    content: dict[str, Any] = {}
    if answer is not None:
        content["application/json"] = {"schema": _ref(answer)}
    if events is not None:
        end = "" if last is None else f"; after the last one, {last}"
        about = f"Server-sent events, each with {events} as JSON{end}."
        content["text/event-stream"] = {"schema": {"type": "string", "description": about}}
    if lines is not None:
        about = f"A line of JSON each for {lines}."
        content["application/x-ndjson"] = {"schema": {"type": "string", "description": about}}
    if text is not None:
        content["text/plain"] = {"schema": {"type": "string", "description": text}}
    extra: dict[str, Any] = {"responses": {"200": {"description": "Success.", "content": content}}}
    for status in errors:
        extra["responses"][str(status)] = {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": _ref(error)}},
        }
    if body is not None:
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        }
    return {"openapi_extra": extra}


def install(app: FastAPI) -> None:
    """Make `app.openapi` add the schemas that `describe` refers to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, schemas = msgspec.json.schema_components(_SCHEMAS, ref_template=REF)
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _ref(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": REF.format(name=struct.__name__)}
