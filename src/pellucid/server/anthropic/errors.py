"""Errors as clients of Anthropic's API read them."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from pellucid.server.anthropic.responses import ErrorDescription, ErrorDetails, MessagesError
from pellucid.server.errors import ErrorDetail

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
# By this their client's tool runner knows that it can go on without a `thread`.
_NO_THREADS = ErrorDetails("thread_unsupported_request", ["thread"])


def messages_error(error: ErrorDetail, status: int, request_id: str) -> msgspec.Struct:
    """An `ErrorShape`: the type goes by the status, but for a queue that is full."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    if error.type == "overloaded_error":
        kind = "overloaded_error"
    details = _NO_THREADS if error.param == "thread" else UNSET
    return MessagesError(ErrorDescription(kind, error.message, details), request_id)
