"""Every error pellucid raises on purpose. Anything else that escapes is a bug.

The server turns `BadRequest` and its kin into the HTTP status they carry; the command line prints
the message alone. Messages name the field and the limit, and never contain a path of the server's
disk unless the user gave it.
"""

from __future__ import annotations


class PellucidError(Exception):
    """Base of all errors a user may see. `status` is the HTTP status it becomes."""

    status = 500
    type = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after  # seconds after which another try makes sense; a hint


class BadRequest(PellucidError):  # noqa: N818 - named after the HTTP answer it becomes
    """The caller's mistake: a field is unknown, unsupported, of a wrong type or out of range."""

    status = 400
    type = "invalid_request_error"


class ModelNotFound(BadRequest):
    """The request names a model that this server does not serve."""

    status = 404


class ModelBusy(BadRequest):
    """A model that answers requests, or is being loaded, cannot be unloaded."""

    status = 409


class RequestNotFound(BadRequest):
    """A request is asked about that this server does not know, or knows no more."""

    status = 404


class Overloaded(PellucidError):  # noqa: N818
    """The queue is full."""

    status = 429
    type = "overloaded_error"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message, code="queue_full", retry_after=retry_after)


class RateLimited(PellucidError):  # noqa: N818
    """A client has used up its requests or tokens of a minute."""

    status = 429
    type = "rate_limit_error"


class Unauthorized(PellucidError):  # noqa: N818
    """The request brings no API key, or one that is not known. OpenAI's type and code."""

    status = 401
    type = "invalid_request_error"


class RequestTimeout(PellucidError):  # noqa: N818
    """The request's own deadline passed before it was done."""

    status = 504
    type = "timeout_error"


class EngineDead(PellucidError):  # noqa: N818
    """The engine process is gone; every open request ends with this."""

    status = 503
    type = "engine_dead_error"


class ShuttingDown(EngineDead):
    """The server was told to stop: it takes no request, and its time for the open ones is over."""

    type = "shutting_down_error"


class ModelError(PellucidError):
    """A model cannot be found, read, trusted or run. One clear line, no traceback."""

    type = "model_error"


class ModelUnavailable(ModelError):  # noqa: N818
    """A model that the server has cannot be loaded now; another try may succeed."""

    status = 503


class ConfigError(PellucidError):
    """A setting (flag, environment variable, configuration file) is wrong."""

    type = "config_error"
