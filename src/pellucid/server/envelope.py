"""The outermost layer: every answer has a request id, and no exception gets past it."""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid.errors import BadRequest
from pellucid.server.errors import ClientGone, error_response

logger = logging.getLogger(__name__)

HEADER = "X-Request-Id"
_VALID = re.compile(r"[\x21-\x7e]{1,128}")


class Envelope:
    """ASGI middleware. Puts `request_id` and, once known, `status` into `request.state`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER)
        refused = given is not None and not _VALID.fullmatch(given)
        request_id = uuid.uuid4().hex if given is None or refused else given
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["response_headers"] = headers = dict[str, str]()  # for whoever has something to add
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                scope["state"]["status"] = message["status"]
                headers["x-request-id"] = request_id
                headers["request-id"] = request_id  # where clients of Anthropic's API look for it
                message["headers"].extend(
                    (name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()
                )
            await send(message)

        try:
            if refused:
                raise BadRequest(
                    f"{HEADER} must be 1 to 128 printable ASCII characters without spaces",
                    param=HEADER,
                    code="invalid_value",
                )
            await self._app(scope, receive, send_with_id)
        except (ClientGone, ClientDisconnect):
            logger.debug("request %s: the client is gone", request_id)
        except Exception as error:
            if started:  # too late for an answer of its own; the server cuts the connection
                raise
            await error_response(error, scope)(scope, receive, send_with_id)
