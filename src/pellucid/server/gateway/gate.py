"""The ASGI layer that lets requests in. Whatever it does not know it refuses."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from pellucid.server.gateway.gateway import Gateway

PUBLIC = frozenset({"/health", "/live", "/ready"})  # what a probe may ask without a key


class Gate:
    """Inside of `Envelope`, which makes responses of the errors raised here.

    Decides on `scope["path"]`, which the router decides on, too; a URL put together from headers
    could name another path than the one that is served.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return  # there are none
        if scope["type"] == "lifespan" or _is_probe(scope):
            await self._app(scope, receive, send)
            return
        await self._gateway.admit(scope)
        if scope["method"] == "POST":
            with self._gateway.at_work():
                await self._app(scope, receive, send)
        else:  # who only looks on does not keep a server from stopping
            await self._app(scope, receive, send)


def _is_probe(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and scope["path"] in PUBLIC
