"""The OpenAPI document: FastAPI's routes with the schemas of our msgspec structs."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pellucid.server.errors import ErrorBody

REF = "#/components/schemas/{name}"
_ERRORS = {
    400: "A field is wrong, unknown or not supported.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "A bug in the server.",
    503: "The engine is dead.",
    504: "The request timed out.",
}
_documented: set[type[msgspec.Struct]] = {ErrorBody}


def describe(
    body: type[msgspec.Struct] | None,
    answer: type[msgspec.Struct] | None,
    *,
    streams: bool = False,
) -> dict[str, Any]:
    """Keyword arguments for a route's decorator that document its body and its answers.

    `answer` is the JSON of a success; with `streams`, there may be server-sent events instead.
    """
    _documented.update(t for t in (body, answer) if t is not None)
    content: dict[str, Any] = {}
    if answer is not None:
        content["application/json"] = {"schema": _ref(answer)}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    extra: dict[str, Any] = {"responses": {"200": {"description": "Success.", "content": content}}}
    statuses = _ERRORS if body is not None else {404: _ERRORS[404], 503: _ERRORS[503]}
    for status, reason in statuses.items():
        extra["responses"][str(status)] = {
            "description": reason,
            "content": {"application/json": {"schema": _ref(ErrorBody)}},
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
            _, schemas = msgspec.json.schema_components(
                sorted(_documented, key=lambda t: t.__name__), ref_template=REF
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _ref(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": REF.format(name=struct.__name__)}
