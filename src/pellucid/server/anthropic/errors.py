"""Errors as clients of Anthropic's API read them."""

from __future__ import annotations

import msgspec

from pellucid.server.anthropic.responses import ErrorDescription, MessagesError
from pellucid.server.errors import ErrorDetail

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def messages_error(error: ErrorDetail, status: int, request_id: str) -> msgspec.Struct:
    """An `ErrorShape`: the type goes by the status, but for a queue that is full."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    if error.type == "overloaded_error":
        kind = "overloaded_error"
    return MessagesError(ErrorDescription(kind, error.message), request_id)
