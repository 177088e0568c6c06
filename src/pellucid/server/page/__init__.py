"""The page that browsers get at `/`, from the files beside this one.

The files are the same for everybody and hold nothing of this server, so they need no API key: it is
in the page that a person enters one. All that the page shows comes from routes that do ask for it.
"""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/page/"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


LIVE, REPLAY = b'data-source="live"', b'data-source="recording"'


class Page:
    """ASGI middleware: answers GET for the page's files, and for `/` to who wants HTML.

    Args:
        is_replay: the page shows a recording, and there is nobody to chat with.
    """

    def __init__(self, app: ASGIApp, *, is_replay: bool = False) -> None:
        self._app = app
        folder = Path(__file__).parent
        self._files = {
            PREFIX + file.name: (file.read_bytes(), TYPES[file.suffix])
            for file in folder.iterdir()
            if file.suffix in TYPES
        }
        if is_replay:
            index, media_type = self._files[PREFIX + "index.html"]
            self._files[PREFIX + "index.html"] = (index.replace(LIVE, REPLAY), media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            path = scope["path"]
            if path == "/" and "text/html" in Headers(scope=scope).get("accept", ""):
                path = PREFIX + "index.html"
            if found := self._files.get(path):
                body, media_type = found
                await Response(body, headers=HEADERS, media_type=media_type)(scope, receive, send)
                return
        await self._app(scope, receive, send)
