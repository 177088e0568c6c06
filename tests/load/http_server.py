"""A local HTTP server with faults to order: what the download tests talk to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Site:
    """What the server serves, what goes wrong, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # path -> content
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)  # hub repositories
    break_after: int | None = None  # bytes of a body, then the connection closes
    breaks_left: int = 1 << 30
    ignore_ranges: bool = False
    wrong_checksums: bool = False
    url: str = ""
    log: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range

    def ranges(self, path: str) -> list[str | None]:
        """Range headers of the GET requests for `path`."""
        return [r for method, p, r in self.log if method == "GET" and p == path]


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5  # a client's idle connection must not keep its thread

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            site.log.append((self.command, path, self.headers.get("Range")))
            headers, body = _content(site, path)
            if body is None:
                self._send(404, headers, b"")
                return
            status, start = 200, 0
            wanted = self.headers.get("Range")
            if wanted and not site.ignore_ranges:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                if start >= len(body):
                    self._send(416, headers, b"")
                    return
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self._send(status, headers, body[start:], with_body=with_body)

        def _send(
            self, status: int, headers: dict[str, str], body: bytes, *, with_body: bool = True
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not with_body:
                return
            if site.break_after is not None and len(body) > site.break_after and site.breaks_left:
                site.breaks_left -= 1
                self.wfile.write(body[: site.break_after])
                self.close_connection = True
                return
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _content(site: Site, path: str) -> tuple[dict[str, str], bytes | None]:
    if path in site.files:
        kind = "text/html" if path.endswith("/") else "application/octet-stream"
        return {"Content-Type": kind}, site.files[path]
    for repo, files in site.repos.items():
        if path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main"):
            return {"Content-Type": "application/json"}, _model_info(site, repo, files)
        for prefix in (f"/{repo}/resolve/main/", f"/{repo}/resolve/{COMMIT}/"):
            name = path.removeprefix(prefix)
            if name != path:
                etag = hashlib.sha256(files.get(name, b"")).hexdigest()
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
                if name not in files:
                    headers["X-Error-Code"] = "EntryNotFound"
                return headers, files.get(name)
    return {"X-Error-Code": "RepoNotFound"}, None


def _model_info(site: Site, repo: str, files: dict[str, bytes]) -> bytes:
    siblings = []
    for name, content in files.items():
        sha256 = hashlib.sha256(b"other" if site.wrong_checksums else content).hexdigest()
        siblings.append(
            {
                "rfilename": name,
                "size": len(content),
                "blobId": sha256[:40],
                "lfs": {"sha256": sha256, "size": len(content), "pointerSize": 130},
            }
        )
    return json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
