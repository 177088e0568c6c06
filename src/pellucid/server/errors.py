"""From an exception to what the client reads: `{"error": {message, type, param, code}}`.

That is OpenAI's shape. Clients of other APIs look for theirs, and find it on the paths of those.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from pellucid.errors import BadRequest, EngineDead, PellucidError, ShuttingDown, Unauthorized

logger = logging.getLogger(__name__)


class ErrorDetail(msgspec.Struct):
    """What went wrong, in OpenAI's four keys."""

    message: str
    type: str
    param: str | None = None  # the field at fault, as a path: messages[0].content
    code: str | None = None


class ErrorBody(msgspec.Struct):
    """Body of every answer with a status of 400 or more, and of an error event in a stream."""

    error: ErrorDetail


# Makes of an error, its status and the request's id the body that an API's clients understand.
ErrorShape = Callable[[ErrorDetail, int, str], msgspec.Struct]


def openai_shape(error: ErrorDetail, status: int, request_id: str) -> msgspec.Struct:
    return ErrorBody(error)


# By the beginning of a path; OpenAI's for all others.
ERROR_SHAPES: dict[str, ErrorShape] = {}


def shape_of(path: str) -> ErrorShape:
    for prefix, shape in ERROR_SHAPES.items():
        if path == prefix or path.startswith(prefix + "/"):
            return shape
    return openai_shape


class BodyTooLarge(BadRequest):
    """The body exceeds `max_body_bytes`."""

    status = 413


class BodyTooSlow(BadRequest):
    """The body did not arrive within `body_timeout`."""

    status = 408


class UnsupportedMediaType(BadRequest):
    """The body is not declared as plain JSON."""

    status = 415


class ClientGone(Exception):  # noqa: N818 - not an error of anyone
    """The client closed its connection: nobody is left to read an answer."""


def detail_of(error: Exception, request_id: str) -> ErrorDetail:
    """Describe `error` to a client; what may hold internals is logged here and not told."""
    if isinstance(error, EngineDead) and not isinstance(error, ShuttingDown):
        message = "The engine has died and is being started again."
        if error.retry_after is None:  # otherwise the log has it already, from who restarts it
            logger.error("request %s: %s", request_id, error.message)
            message = "The engine has stopped. The server's log says why."
        return ErrorDetail(message, error.type, None, error.code)
    if isinstance(error, PellucidError):
        return ErrorDetail(error.message, error.type, error.param, error.code)
    logger.error("request %s failed", request_id, exc_info=error)
    message = f"Internal server error. The server's log has it under request id {request_id}."
    return ErrorDetail(message, "internal_error")


def body_of(error: Exception, scope: Scope) -> msgspec.Struct:
    """What the client of a request that fails is told, in its API's shape."""
    request_id = scope["state"]["request_id"]
    return shape_of(scope["path"])(detail_of(error, request_id), status_of(error), request_id)


def status_of(error: Exception) -> int:
    return error.status if isinstance(error, PellucidError) else 500


def error_response(error: Exception, scope: Scope) -> Response:
    """The whole answer to a request that failed before its first byte was sent."""
    headers = {}
    if isinstance(error, PellucidError) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, BodyTooLarge | BodyTooSlow):
        headers["Connection"] = "close"  # the rest of the body may never come
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="pellucid"'
    return _respond(status_of(error), body_of(error, scope), headers)


async def on_pellucid_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for every error raised on purpose."""
    return error_response(error, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """FastAPI's handler for what the router refuses: unknown paths and wrong methods."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    path, code = request.scope["path"], None  # url.path trusts the Host header
    message = str(getattr(error, "detail", "")) or "Request refused."
    if status == 404:
        message, code = f"There is no route {path}.", "unknown_route"
    elif status == 405:
        allowed = headers.get("Allow", "another method")
        message, code = f"{request.method} is not allowed on {path}; use {allowed}.", "wrong_method"
    detail = ErrorDetail(message, BadRequest.type, None, code)
    return _respond(status, shape_of(path)(detail, status, request.state.request_id), headers)


def _respond(status: int, body: msgspec.Struct, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
